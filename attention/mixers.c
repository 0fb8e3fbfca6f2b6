/* The table of mixers. */
#include "mixer.h"

#include <stddef.h>

const mixer_ops *const mixers[] = {
    &mixer_softmax,      &mixer_lolcats,   &mixer_hedgehog,        &mixer_short_conv,
    &mixer_based_taylor, &mixer_delta_net, &mixer_gated_delta_net, NULL,
};
