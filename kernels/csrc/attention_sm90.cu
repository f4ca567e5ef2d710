// attention by TMA and wgmma for Hopper: see attention_wgmma.h.

#include <cudaTypedefs.h>

#include "attention_launch.h"
#include "attention_wgmma.h"

namespace hotloop::attention_kernels {
namespace {

// The driver's encoder, found at run time: the module must load on machines without a driver.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(kOp, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess || !found)
        throw Error(kOp, "the CUDA driver must be of version 12.0 or later", "one without cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

CUtensorMap encode(const MapPlan& plan, DType dtype) {
    const auto type = dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    const cuuint64_t size[4] = {plan.size[0], plan.size[1], plan.size[2], plan.size[3]};
    const cuuint64_t stride[3] = {plan.stride[0], plan.stride[1], plan.stride[2]};
    const cuuint32_t box[4] = {maps::kPanelColumns, plan.rows, 1, 1};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    CUtensorMap map{};
    const CUresult result =
        encoder()(&map, type, 4, plan.data, size, stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw Error(kOp, "the tensor must have a tensor map", "CUDA error " + std::to_string(result));
    return map;
}

// Two blocks would not fit an SM, and `1` lets the warpgroups trade registers.
template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    attention_wgmma(const __grid_constant__ Params p, const __grid_constant__ CUtensorMap q,
                    const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    const WgmmaAttention<T, S> attention(p, q, k, v, machine::shared_address(machine::shared()));
    attention.run();
#endif  // no other architecture is sent here
}

template <class T>
void launch(const Attention& op, const Params& p, cudaStream_t stream) {
    with_wgmma_shape(p.head_size, [&](auto shape) {
        using S = decltype(shape);
        const int64_t B = op.q.shape[0], H = op.q.shape[2];
        const KeySet& set = p.set[0];
        const CUtensorMap q = encode(map_plan(p.q, p.head_size, p.queries, H, B, S::kRows), op.q.dtype);
        const CUtensorMap k = encode(map_plan(set.k, p.head_size, set.keys, H, B, S::kTileKeys), op.q.dtype);
        const CUtensorMap v = encode(map_plan(set.v, p.head_size, set.keys, H, B, S::kTileKeys), op.q.dtype);
        allow_shared(attention_wgmma<T, S>, S::kBytes);
        attention_wgmma<T, S><<<grid_of(op, S::kRows), S::kThreads, S::kBytes, stream>>>(p, q, k, v);
        check(kOp, cudaGetLastError());
    });
}

}  // namespace

void launch_hopper(const Attention& op, const Params& p, cudaStream_t stream) {
    if (op.q.dtype == DType::f16)
        launch<machine::F16>(op, p, stream);
    else
        launch<machine::Bf16>(op, p, stream);
}

}  // namespace hotloop::attention_kernels
