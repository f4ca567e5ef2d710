// Sums and products that are rounded one by one, also on a device, whose compiler contracts them to FMA by default.
#pragma once

#include "common.h"

namespace hotloop {

HOTLOOP_HD HOTLOOP_INLINE float times(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
HOTLOOP_HD HOTLOOP_INLINE float plus(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

}  // namespace hotloop
