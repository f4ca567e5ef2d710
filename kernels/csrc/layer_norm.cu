// layer_norm on CUDA: as in layer_norm.cpp.
//
// Launch:  a warp a row where packs of 16 bytes fit and a row fits in the warp's registers (C <= 2,560 in float16, 1,280
//          in float32: every row of SD 1.5): no shared memory, one read, one write. Else a block a row, which reads it
//          three times, out of L1 after the first.
// Limit:   memory.

#include "cuda.h"
#include "ops_cuda.h"
#include "rows.h"

namespace hotloop {
namespace {

constexpr int kWarps = 4;  // of a block; few, so that 77 or 128 rows still spread over the GPU

template <class T>
struct Arguments {
    const T *x, *weight, *bias;
    T* out;
    Rows in_rows, out_rows;
    int64_t stride, out_stride, weight_stride, bias_stride;
    int channels;
    float eps;
};

template <class T, int kPacks>
__global__ void __launch_bounds__(32 * kWarps) warp_per_row(const Arguments<T> a) {
    constexpr int kWidth = Pack<T>::size;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (row >= a.in_rows.count) return;  // a whole warp
    const T* x = a.x + offset_of(a.in_rows, row);
    T* out = a.out + offset_of(a.out_rows, row);

    float value[kPacks][kWidth];
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        const int c = (p * 32 + lane) * kWidth;
        if (c < a.channels) {
            const auto pack = read_pack<T, kWidth>(x + c);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
                value[p][i] = as_float(pack.value[i]);
                sum += value[p][i];
            }
        }
    }
    const float mean = warp_sum(sum) / static_cast<float>(a.channels);

    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p)
        if ((p * 32 + lane) * kWidth < a.channels)
#pragma unroll
            for (int i = 0; i < kWidth; ++i) squares += (value[p][i] - mean) * (value[p][i] - mean);
    const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.channels) + a.eps);

#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
        const int c = (p * 32 + lane) * kWidth;
        if (c < a.channels) {
            const auto weight = read_pack<T, kWidth>(a.weight + c), bias = read_pack<T, kWidth>(a.bias + c);
            Pack<T> pack;
#pragma unroll
            for (int i = 0; i < kWidth; ++i)
                assign(pack.value[i],
                       (value[p][i] - mean) * scale * as_float(weight.value[i]) + as_float(bias.value[i]));
            write_pack<T, kWidth>(out + c, pack);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(256) block_per_row(const Arguments<T> a) {
    __shared__ float shared[32];
    const int64_t row = blockIdx.x;
    const T* x = a.x + offset_of(a.in_rows, row);
    T* out = a.out + offset_of(a.out_rows, row);
    float sum = 0.0f, squares = 0.0f;
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += 256) sum += as_float(x[c * a.stride]);
    const float mean = block_sum(sum, shared) / static_cast<float>(a.channels);
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += 256) {
        const float distance = as_float(x[c * a.stride]) - mean;
        squares += distance * distance;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(a.channels) + a.eps);
    for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += 256) {
        const float weight = as_float(a.weight[c * a.weight_stride]), bias = as_float(a.bias[c * a.bias_stride]);
        assign(out[c * a.out_stride], (as_float(x[c * a.stride]) - mean) * scale * weight + bias);
    }
}

template <class T>
void launch(const LayerNorm& op, cudaStream_t stream) {
    const int last = op.x.ndim - 1;
    const auto channels = static_cast<int>(op.x.shape[last]);
    const Arguments<T> a{static_cast<const T*>(op.x.data), static_cast<const T*>(op.weight.data),
                         static_cast<const T*>(op.bias.data), static_cast<T*>(op.out.data),
                         rows_of(op.x), rows_of(op.out),
                         op.x.stride[last], op.out.stride[last], op.weight.stride[0], op.bias.stride[0],
                         channels, op.eps};
    const int64_t rows = a.in_rows.count;
    if (rows == 0) return;
    const bool packs = in_packs(op.x, last, channels) && in_packs(op.out, last, channels) &&
                       in_packs(op.weight, 0, channels) && in_packs(op.bias, 0, channels);
    const int needed = (channels + 32 * Pack<T>::size - 1) / (32 * Pack<T>::size);
    const auto blocks = static_cast<unsigned>((rows + kWarps - 1) / kWarps);
    if (packs && needed <= 2) {
        warp_per_row<T, 2><<<blocks, 32 * kWarps, 0, stream>>>(a);
    } else if (packs && needed <= 3) {
        warp_per_row<T, 3><<<blocks, 32 * kWarps, 0, stream>>>(a);
    } else if (packs && needed <= 5) {
        warp_per_row<T, 5><<<blocks, 32 * kWarps, 0, stream>>>(a);
    } else if (packs && needed <= 10) {
        warp_per_row<T, 10><<<blocks, 32 * kWarps, 0, stream>>>(a);
    } else {
        block_per_row<T><<<static_cast<unsigned>(rows), 256, 0, stream>>>(a);
    }
    check("layer_norm", cudaGetLastError());
}

}  // namespace

void layer_norm_cuda(const LayerNorm& op, cudaStream_t stream) {
    const OnDevice device("layer_norm", op.x.device);
    with_cuda_type(op.x.dtype, [&](auto* type) { launch<std::remove_pointer_t<decltype(type)>>(op, stream); });
}

}  // namespace hotloop
