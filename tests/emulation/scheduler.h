/* Between the two halves of the emulated GPU: device.cc queues, simt.cc runs. */
#ifndef SCHEDULER_H
#define SCHEDULER_H

#include "../../kernels_cuda/device.h"
#include "control.h"

#include <string>

struct simt_grid {
    launch_shape shape;
    std::string name; /* of the kernel */
    std::function<void()> body;
};

/* Runs a grid. `previous`, if there is one, runs when the grid first waits for it, or at its end.
 * False with a sentence in *failure when the kernel did what a GPU would not survive. */
bool simt_run(const simt_grid &grid, const std::function<bool()> *previous, std::string *failure);

/* Dynamic and static shared memory that a block can have: the least of all GPUs since sm_80. */
const size_t shared_limit = 99 << 10;

#endif
