/* What tests ask of the emulated GPU beside device.h. Settings hold for the whole process. */
#ifndef CONTROL_H
#define CONTROL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The order in which blocks, and threads between two places where they wait, run. Kernels without a
 * race give equal bits in all. */
typedef enum { SIMT_FORWARD, SIMT_REVERSE, SIMT_SHUFFLED } simt_order;
void simt_set_order(simt_order order, uint64_t seed);

/* Bytes that device_alloc can give in all; at the start 16 GiB. */
void simt_set_memory(size_t bytes);

/* What device_open finds. */
typedef enum { SIMT_GPU, SIMT_NO_GPU, SIMT_OLD_DRIVER, SIMT_OTHER_ARCHITECTURE } simt_machine;
void simt_set_machine(simt_machine machine);
/* The n-th launch from now (1 = the next) faults, as one that reads where nothing is; 0 = none. */
void simt_set_fault(uint64_t n);

/* Launches that have run since the start. */
uint64_t simt_launches(void);

#ifdef __cplusplus
}
#endif
#endif
