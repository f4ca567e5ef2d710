// warp_blend: what the instruction sets' kernels offer to the scheduler in warp_blend.cpp.
#pragma once

#include <cstdint>

#include "ops.h"

namespace hotloop {

struct WarpBlendKernel {
    int64_t (*scratch)(const WarpBlend&);  // floats that a call needs
    void (*run)(const WarpBlend&, int first, int end, float* scratch);  // rows of the result
};

extern const WarpBlendKernel kWarpBlendAvx2;
extern const WarpBlendKernel kWarpBlendAvx512;

}  // namespace hotloop
