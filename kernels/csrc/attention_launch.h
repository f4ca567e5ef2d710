// Launching the CUDA attention kernels: what is measured on the device and decided on the host. Included by one .cu
// file per element type, so that they compile side by side.
#pragma once

#include <string>

#include "attention_cuda.h"
#include "attention_mma.h"
#include "common.h"
#include "cuda.h"
#include "machine.h"

namespace hotloop::attention_kernels {

constexpr const char* kOp = "attention";

inline int device_attribute(cudaDeviceAttr attribute, int device) {
    int value = 0;
    check(kOp, cudaDeviceGetAttribute(&value, attribute, device));
    return value;
}

// Blocks above 48 KB must be allowed to, once per device; asking again costs about a microsecond.
template <class Kernel>
void allow_shared(Kernel kernel, int bytes) {
    check(kOp, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

inline dim3 grid_of(const Attention& op, int rows) {
    return dim3(unsigned((op.q.shape[1] + rows - 1) / rows), unsigned(op.q.shape[2]), unsigned(op.q.shape[0]));
}

template <class T, class S, bool kSegmented>
__global__ void __launch_bounds__(S::kThreads, S::kResident) attention_mma(const __grid_constant__ Params p) {
    MmaAttention<T, S> attention(p, machine::shared_address(machine::shared()));
    attention.template run<kSegmented>();
}

template <class T, class S>
auto mma_kernel(bool segmented) {
    // Head size 512 (the VAE, which has no segments) saves 80 registers without their code; the others save few.
    if constexpr (S::kColumnWarps == 2)
        if (!segmented) return attention_mma<T, S, false>;
    return attention_mma<T, S, true>;
}

template <class T>
void launch_mma(const Attention& op, Params p, cudaStream_t stream) {
    const int device = op.q.device.index;
    const int block_limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const int sm_limit = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    const int processors = device_attribute(cudaDevAttrMultiProcessorCount, device);
    const bool tall = prefer_tall(op.q.shape[0], op.q.shape[2], p.queries, processors);
    with_mma_shape(p.head_size, tall, block_limit, [&](auto shape) {
        using S = decltype(shape);
        const auto kernel = mma_kernel<T, S>(p.sets > 1);
        cudaFuncAttributes built{};
        check(kOp, cudaFuncGetAttributes(&built, kernel));
        const int resident = 65536 / (built.numRegs * S::kThreads);
        p.stages = choose_stages(S::bytes(2), S::kStageBytes, block_limit, sm_limit, resident);
        const int bytes = S::bytes(p.stages);
        if (p.stages == 0)
            throw Error(kOp, "the GPU must give a block " + std::to_string(S::bytes(2)) + " bytes of shared memory",
                        std::to_string(block_limit));
        allow_shared(kernel, bytes);
        kernel<<<grid_of(op, S::kRows), S::kThreads, bytes, stream>>>(p);
        check(kOp, cudaGetLastError());
    });
}

void launch_f16(const Attention& op, const Params& p, cudaStream_t stream);
void launch_bf16(const Attention& op, const Params& p, cudaStream_t stream);
void launch_hopper(const Attention& op, const Params& p, cudaStream_t stream);

}  // namespace hotloop::attention_kernels
