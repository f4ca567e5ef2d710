// geglu on CUDA: as in geglu.cpp, with the device library's erf.
//
// Launch:  a block a row, its threads over packs of 16 bytes where they fit, else over single values.
// Limit:   memory: 6 bytes a value in float16, against some 30 instructions.

#include <algorithm>

#include "cuda.h"
#include "ops_cuda.h"
#include "rows.h"

namespace hotloop {
namespace {

template <class T>
struct Arguments {
    const T* x;
    T* out;
    Rows in_rows, out_rows;
    int64_t stride, out_stride;
    int channels;
};

__device__ float gated(float value, float gate) { return value * (0.5f * gate * (1.0f + erff(gate * 0.707106781f))); }

template <class T, int kWidth>
__global__ void __launch_bounds__(256) block_per_row(const Arguments<T> a) {
    const int64_t row = blockIdx.x;
    const T* x = a.x + offset_of(a.in_rows, row);
    const T* gate = x + a.channels * a.stride;
    T* out = a.out + offset_of(a.out_rows, row);
    const int step = static_cast<int>(blockDim.x) * kWidth;
    for (int c = static_cast<int>(threadIdx.x) * kWidth; c < a.channels; c += step) {
        if constexpr (kWidth == 1) {
            assign(out[c * a.out_stride], gated(as_float(x[c * a.stride]), as_float(gate[c * a.stride])));
        } else {
            const auto values = read_pack<T, kWidth>(x + c), gates = read_pack<T, kWidth>(gate + c);
            Pack<T, kWidth> pack;
#pragma unroll
            for (int i = 0; i < kWidth; ++i)
                assign(pack.value[i], gated(as_float(values.value[i]), as_float(gates.value[i])));
            write_pack<T, kWidth>(out + c, pack);
        }
    }
}

template <class T>
void launch(const Geglu& op, cudaStream_t stream) {
    const int last = op.x.ndim - 1;
    const auto channels = static_cast<int>(op.out.shape[last]);
    const Arguments<T> a{static_cast<const T*>(op.x.data), static_cast<T*>(op.out.data), rows_of(op.x), rows_of(op.out),
                         op.x.stride[last], op.out.stride[last], channels};
    if (a.in_rows.count == 0) return;
    const bool packs = in_packs(op.x, last, channels) && in_packs(op.out, last, channels);
    const int turns = packs ? channels / Pack<T>::size : channels;
    const int threads = std::min(256, (turns + 31) / 32 * 32);
    const auto blocks = static_cast<unsigned>(a.in_rows.count);
    if (packs) {
        block_per_row<T, Pack<T>::size><<<blocks, threads, 0, stream>>>(a);
    } else {
        block_per_row<T, 1><<<blocks, threads, 0, stream>>>(a);
    }
    check("geglu", cudaGetLastError());
}

}  // namespace

void geglu_cuda(const Geglu& op, cudaStream_t stream) {
    const OnDevice device("geglu", op.x.device);
    with_cuda_type(op.x.dtype, [&](auto* type) { launch<std::remove_pointer_t<decltype(type)>>(op, stream); });
}

}  // namespace hotloop
