// warp_blend on CUDA: as in warp_blend.cpp, byte for byte.
//
// Launch:  a thread a pixel, blocks of 32 x 8: their taps of a source lie close together.
// Limit:   latency; sources and result of 512 x 512 are 3 MB, which the L2 cache holds, and the grids are read through it.

#include "cuda.h"
#include "ops_cuda.h"
#include "warp_blend_value.h"

namespace hotloop {
namespace {

constexpr int kAcross = 32, kDown = 8;

struct Places {
    Place layer[kMaxLayers];
};

__global__ void __launch_bounds__(kAcross * kDown) blend(const WarpBlend op, const Places places) {
    const int x = static_cast<int>(blockIdx.x * kAcross + threadIdx.x);
    const int y = static_cast<int>(blockIdx.y * kDown + threadIdx.y);
    if (x < op.out.shape[1] && y < op.out.shape[0]) blend_pixel(op, places.layer, x, y);
}

}  // namespace

void warp_blend_cuda(const WarpBlend& op, cudaStream_t stream) {
    const OnDevice device("warp_blend", op.out.device);
    Places places{};
    places_of(op, places.layer);
    const dim3 blocks(static_cast<unsigned>((op.out.shape[1] + kAcross - 1) / kAcross),
                      static_cast<unsigned>((op.out.shape[0] + kDown - 1) / kDown));
    blend<<<blocks, dim3(kAcross, kDown), 0, stream>>>(op, places);
    check("warp_blend", cudaGetLastError());
}

}  // namespace hotloop
