// rgb on CUDA: as in rgb.cpp, bit for bit.
//
// Launch:  a thread a pixel of the result, for all its channels; an image's blocks side by side.
// Limit:   memory and latency: a picture of 512 x 512 is 0.8 MB of bytes.

#include "cuda.h"
#include "ops_cuda.h"
#include "rgb_value.h"

namespace hotloop {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) pack(const RgbPack op) {
    const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, n = blockIdx.y;
    if (pixel >= op.in.shape[2] * op.in.shape[3]) return;
    const int64_t y = pixel / op.in.shape[3], x = pixel % op.in.shape[3];
    const T* from = static_cast<const T*>(op.in.data) + n * op.in.stride[0] + y * op.in.stride[2] + x * op.in.stride[3];
    auto* to = static_cast<uint8_t*>(op.out.data) + n * op.out.stride[0] + y * op.out.stride[1] + x * op.out.stride[2];
    int bad = 0;
    for (int64_t c = 0; c < op.in.shape[1]; ++c) {
        const float value = as_float(from[c * op.in.stride[1]]);
        bad += !is_finite(value);
        to[c * op.out.stride[3]] = byte_of(value);
    }
    if (bad && op.bad.data) atomicAdd(static_cast<int*>(op.bad.data), bad);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) unpack(const RgbUnpack op) {
    const int pixel = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), n = static_cast<int>(blockIdx.y);
    const int width = static_cast<int>(op.out.shape[3]), y = pixel / width, x = pixel % width;
    if (y >= op.out.shape[2]) return;
    T* to = static_cast<T*>(op.out.data) + n * op.out.stride[0] + y * op.out.stride[2] + x * op.out.stride[3];
    for (int c = 0; c < op.out.shape[1]; ++c) assign(to[c * op.out.stride[1]], resized_value(op, n, c, y, x));
}

dim3 blocks_for(int64_t images, int64_t pixels) {
    return dim3(static_cast<unsigned>((pixels + kThreads - 1) / kThreads), static_cast<unsigned>(images));
}

}  // namespace

void rgb_pack_cuda(const RgbPack& op, cudaStream_t stream) {
    const OnDevice device("rgb.pack", op.in.device);
    if (op.bad) check("rgb.pack", cudaMemsetAsync(op.bad.data, 0, sizeof(int32_t), stream));
    if (size_of(op.in) == 0) return;
    const dim3 blocks = blocks_for(op.in.shape[0], op.in.shape[2] * op.in.shape[3]);
    with_cuda_type(op.in.dtype, [&](auto* type) {
        pack<std::remove_pointer_t<decltype(type)>><<<blocks, kThreads, 0, stream>>>(op);
    });
    check("rgb.pack", cudaGetLastError());
}

void rgb_unpack_cuda(const RgbUnpack& op, cudaStream_t stream) {
    const OnDevice device("rgb.unpack", op.in.device);
    if (size_of(op.out) == 0) return;
    const dim3 blocks = blocks_for(op.out.shape[0], op.out.shape[2] * op.out.shape[3]);
    with_cuda_type(op.out.dtype, [&](auto* type) {
        unpack<std::remove_pointer_t<decltype(type)>><<<blocks, kThreads, 0, stream>>>(op);
    });
    check("rgb.unpack", cudaGetLastError());
}

}  // namespace hotloop
