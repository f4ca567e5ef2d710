// cfg_step on CUDA: as in cfg_step.cpp, bit for bit.
//
// Launch:  a thread a value, an image's blocks side by side. Rows, guidance and the table are read from device memory, so
//          a captured graph serves every row, guidance scale and schedule; a block loads its image's row once.
// Limit:   latency: 16,384 values an image at 512 x 512 are some 64 blocks, over in a few microseconds.

#include "cfg_step_value.h"
#include "cuda.h"
#include "ops_cuda.h"

namespace hotloop {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) step(const CfgStep s) {
    __shared__ StepRow numbers;
    const int64_t image = blockIdx.y, row = s.rows[image];
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, values = s.channels * s.pixels;
    if (row < 0 || row >= s.table) {  // the whole block
        if (at < values) spoil_value(s, image, at);
        return;
    }
    for (int i = static_cast<int>(threadIdx.x); i < step_row_items(s); i += kThreads)
        load_step_row(s, image, row, i, numbers);
    __syncthreads();
    if (at < values) step_value(s, numbers, image, at);
}

}  // namespace

void cfg_step_cuda(const CfgStep& s, const Device& where, cudaStream_t stream) {
    const OnDevice device("cfg_step", where);
    const int64_t blocks = (s.channels * s.pixels + kThreads - 1) / kThreads;
    if (blocks == 0 || s.images == 0) return;
    step<<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(s.images)), kThreads, 0, stream>>>(s);
    check("cfg_step", cudaGetLastError());
}

}  // namespace hotloop
