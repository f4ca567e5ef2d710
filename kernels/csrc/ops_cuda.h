// The operators on a CUDA device: as in ops.h, with the stream that the work joins. Nothing here waits for the device.
#pragma once

#include "ops.h"

// As in cuda_runtime.h, so that the bindings need no CUDA headers.
struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace hotloop {

// The compute capability of a device, 90 for 9.0.
int architecture(int device);

void attention_cuda(const Attention& op, cudaStream_t stream);
// Whether Hopper takes its own kernel where that fits; at first it does not.
void attention_use_wgmma(bool use);
void cfg_step_cuda(const CfgStep& step, const Device& device, cudaStream_t stream);
void geglu_cuda(const Geglu& op, cudaStream_t stream);
void group_norm_silu_cuda(const GroupNormSilu& op, cudaStream_t stream);
void layer_norm_cuda(const LayerNorm& op, cudaStream_t stream);
void rgb_pack_cuda(const RgbPack& op, cudaStream_t stream);
void rgb_unpack_cuda(const RgbUnpack& op, cudaStream_t stream);
void warp_blend_cuda(const WarpBlend& op, cudaStream_t stream);

}  // namespace hotloop
