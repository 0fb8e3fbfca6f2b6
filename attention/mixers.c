/* The table of mixers. */
#include "mixer.h"

#include <stddef.h>

const mixer_ops *const mixers[] = {
    &mixer_softmax,
    &mixer_lolcats,
    &mixer_hedgehog,
    NULL,
};
