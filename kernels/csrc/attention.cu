// attention on CUDA: which kernel, and the one for float32.
//
// What:    out = softmax(Q K^T scale + mask) V + sum_j weight_j softmax(Q K_j^T scale) V_j, as in attention.cpp.
// Kernels: attention_mma.h    float16 and bfloat16, sm_80 and later: everything;
//          attention_wgmma.h  the same on sm_90a, for the plain self-attentions of SD 1.5, once proved for itself;
//          attention_ffma.h   float32, every GPU.
//          Their bodies also compile for the CPU, where tests/emulator runs them.

#include <atomic>
#include <cstdint>
#include <string>

#include "attention_ffma.h"
#include "attention_launch.h"
#include "common.h"
#include "ops_cuda.h"

namespace hotloop {
namespace attention_kernels {

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) attention_ffma(const __grid_constant__ Params p) {
    FfmaAttention<S> attention(p, machine::shared_address(machine::shared()));
    attention.run();
}

std::atomic<bool> use_wgmma{false};

void launch_f32(const Attention& op, const Params& p, cudaStream_t stream) {
    with_ffma_shape(p.head_size, [&](auto shape) {
        using S = decltype(shape);
        allow_shared(attention_ffma<S>, S::kBytes);
        attention_ffma<S><<<grid_of(op, S::kRows), S::kThreads, S::kBytes, stream>>>(p);
        check(kOp, cudaGetLastError());
    });
}

}  // namespace attention_kernels

void attention_use_wgmma(bool use) { attention_kernels::use_wgmma = use; }

void attention_cuda(const Attention& op, cudaStream_t stream) {
    using namespace attention_kernels;
    // The grid's limit.
    const int64_t most = op.q.shape[0] > op.q.shape[2] ? op.q.shape[0] : op.q.shape[2];
    if (most > 65535) throw Error(kOp, "batch and heads must be at most 65535 on CUDA", std::to_string(most));
    if (size_of(op.out) == 0) return;
    const OnDevice on(kOp, op.q.device);
    const Params p = params_of(op);
    if (op.q.dtype == DType::f32)
        launch_f32(op, p, stream);
    else if (use_wgmma && wgmma_fits(op, p) && architecture(op.q.device.index) == 90)
        launch_hopper(op, p, stream);
    else if (op.q.dtype == DType::f16)
        launch_f16(op, p, stream);
    else
        launch_bf16(op, p, stream);
}

}  // namespace hotloop
