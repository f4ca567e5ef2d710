// group_norm_silu on CUDA: as in group_norm_silu.cpp.
//
// Launch:  NHWC in packs of 16 bytes: two kernels. `statistics` gives every block a tile of pixels, its threads a pack of
//          channels each and several pixels at a time, and stores the tile's moments per group; `apply` puts the tiles'
//          moments together (a few KB, from L2, in each block anew: cheaper than a third kernel) and writes its tile.
//          Every other layout: one block for each image and group.
// Limit:   memory: x is read twice, the second time from L2 for the UNet's tensors, and out is written once.
// Order:   fixed, so that runs repeat bit for bit.

#include <algorithm>

#include "cuda.h"
#include "group_norm_tiles.h"
#include "ops_cuda.h"

namespace hotloop {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Arguments {
    const T *x, *weight, *bias;
    T* out;
    float* moments;  // [N][tiles][groups][2]: mean, squares
    int64_t image, out_image, channel, out_channel, line, out_line, pixel, out_pixel;  // strides
    int64_t weight_stride, bias_stride;
    int channels, groups, height, width, tiles;
    float eps;
    bool silu;

    __device__ int64_t at(int p) const { return p / width * line + p % width * pixel; }
    __device__ int64_t out_at(int p) const { return p / width * out_line + p % width * out_pixel; }
    __device__ int pixels() const { return height * width; }
    __device__ int per_group() const { return channels / groups; }
};

// The quick forms are off by some 2^-21, far below a half's rounding.
template <class T>
__device__ float finish(float y, bool silu) {
    if (!silu) return y;
    if constexpr (sizeof(T) == 2) return __fdividef(y, 1.0f + __expf(-y));
    return y / (1.0f + expf(-y));
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) statistics(const Arguments<T> a) {
    constexpr int kWidth = Pack<T>::size;
    extern __shared__ float shared[];  // [lines][channels] sums, then [lines][channels] squares
    const PackGrid grid(a.channels, kWidth, kThreads);
    const int thread = static_cast<int>(threadIdx.x), tile = static_cast<int>(blockIdx.x);
    const TileRange range = tile_range(tile, a.tiles, a.pixels());
    const T* x = a.x + blockIdx.y * a.image;
    float* squares_of = shared + grid.lines * a.channels;

    // Distances from the tile's first pixel: a mean far from zero costs no digits.
    if (thread < grid.threads()) {
        for (int pack = grid.pack(thread); pack < grid.packs; pack += grid.packs_at_once) {
            const int c = pack * kWidth;
            const auto first = read_pack<T, kWidth>(x + a.at(range.begin) + c);
            float sum[kWidth] = {}, squares[kWidth] = {};
#pragma unroll 4
            for (int p = range.begin + grid.line(thread); p < range.end; p += grid.lines) {
                const auto values = read_pack<T, kWidth>(x + a.at(p) + c);
#pragma unroll
                for (int i = 0; i < kWidth; ++i) {
                    const float distance = as_float(values.value[i]) - as_float(first.value[i]);
                    sum[i] += distance;
                    squares[i] += distance * distance;
                }
            }
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
                shared[grid.line(thread) * a.channels + c + i] = sum[i];
                squares_of[grid.line(thread) * a.channels + c + i] = squares[i];
            }
        }
    }
    __syncthreads();

    // Lines together: each channel's mean, and its squares about that.
    const float count = static_cast<float>(range.end - range.begin);
    for (int c = thread; c < a.channels; c += kThreads) {
        float sum = 0.0f, squares = 0.0f;
        for (int line = 0; line < grid.lines; ++line) {
            sum += shared[line * a.channels + c];
            squares += squares_of[line * a.channels + c];
        }
        const float away = sum / count;
        shared[c] = as_float(x[a.at(range.begin) + c]) + away;
        squares_of[c] = fmaxf(squares - sum * away, 0.0f);
    }
    __syncthreads();

    // Channels together.
    for (int g = thread; g < a.groups; g += kThreads) {
        const int begin = g * a.per_group(), end = begin + a.per_group();
        float away = 0.0f, squares = 0.0f;
        for (int c = begin; c < end; ++c) away += shared[c] - shared[begin];
        const float mean = shared[begin] + away / static_cast<float>(a.per_group());
        for (int c = begin; c < end; ++c) {
            const float distance = shared[c] - mean;
            squares += squares_of[c] + count * distance * distance;
        }
        float* to = a.moments + ((static_cast<int64_t>(blockIdx.y) * a.tiles + tile) * a.groups + g) * 2;
        to[0] = mean;
        to[1] = squares;
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) apply(const Arguments<T> a) {
    constexpr int kWidth = Pack<T>::size;
    extern __shared__ float shared[];  // [groups] means, then [groups] scales
    const PackGrid grid(a.channels, kWidth, kThreads);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    float* scales = shared + a.groups;

    // A warp puts the tiles of a group together.
    const float* moments = a.moments + static_cast<int64_t>(blockIdx.y) * a.tiles * a.groups * 2;
    for (int g = thread / 32; g < a.groups; g += kThreads / 32) {
        const float first = moments[2 * g], total = static_cast<float>(a.pixels());
        float away = 0.0f, squares = 0.0f;
        for (int tile = lane; tile < a.tiles; tile += 32)
            away += tile_range(tile, a.tiles, a.pixels()).count() * (moments[2 * (tile * a.groups + g)] - first);
        const float mean = first + warp_sum(away) / total;
        for (int tile = lane; tile < a.tiles; tile += 32) {
            const float distance = moments[2 * (tile * a.groups + g)] - mean;
            const float count = tile_range(tile, a.tiles, a.pixels()).count() * static_cast<float>(a.per_group());
            squares += moments[2 * (tile * a.groups + g) + 1] + count * distance * distance;
        }
        squares = warp_sum(squares);
        if (lane == 0) {
            shared[g] = mean;
            scales[g] = 1.0f / sqrtf(squares / (total * static_cast<float>(a.per_group())) + a.eps);
        }
    }
    __syncthreads();

    if (thread >= grid.threads()) return;
    const TileRange range = tile_range(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), a.pixels());
    const T* x = a.x + blockIdx.y * a.image;
    T* out = a.out + blockIdx.y * a.out_image;
    for (int pack = grid.pack(thread); pack < grid.packs; pack += grid.packs_at_once) {
        const int c = pack * kWidth;
        float mean[kWidth], factor[kWidth], bias[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            const int g = (c + i) / a.per_group();
            mean[i] = shared[g];
            factor[i] = scales[g] * as_float(a.weight[(c + i) * a.weight_stride]);
            bias[i] = as_float(a.bias[(c + i) * a.bias_stride]);
        }
        // Four pixels are read before the first is written: x may be out, so the compiler would wait for each store.
        constexpr int kTurns = 4;
        for (int p = range.begin + grid.line(thread); p < range.end; p += kTurns * grid.lines) {
            Pack<T> values[kTurns];
#pragma unroll
            for (int turn = 0; turn < kTurns; ++turn)
                if (p + turn * grid.lines < range.end)
                    values[turn] = read_pack<T, kWidth>(x + a.at(p + turn * grid.lines) + c);
#pragma unroll
            for (int turn = 0; turn < kTurns; ++turn) {
                if (p + turn * grid.lines >= range.end) break;
#pragma unroll
                for (int i = 0; i < kWidth; ++i) {
                    const float y = (as_float(values[turn].value[i]) - mean[i]) * factor[i] + bias[i];
                    assign(values[turn].value[i], finish<T>(y, a.silu));
                }
                write_pack<T, kWidth>(out + a.out_at(p + turn * grid.lines) + c, values[turn]);
            }
        }
    }
}

// Any strides: a value's channel and pixel by division.
template <class T>
__global__ void __launch_bounds__(2 * kThreads) block_per_group(const Arguments<T> a) {
    __shared__ float shared[32];
    const int first = static_cast<int>(blockIdx.x) * a.per_group();
    const int count = a.per_group() * a.pixels(), step = static_cast<int>(blockDim.x);
    const T* x = a.x + blockIdx.y * a.image + first * a.channel;
    T* out = a.out + blockIdx.y * a.out_image + first * a.out_channel;
    const auto value = [&](int i) { return as_float(x[i / a.pixels() * a.channel + a.at(i % a.pixels())]); };

    float sum = 0.0f, squares = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += step) sum += value(i);
    const float mean = block_sum(sum, shared) / static_cast<float>(count);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += step) squares += (value(i) - mean) * (value(i) - mean);
    const float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(count) + a.eps);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += step) {
        const int c = i / a.pixels();
        const float factor = scale * as_float(a.weight[(first + c) * a.weight_stride]);
        const float y = (value(i) - mean) * factor + as_float(a.bias[(first + c) * a.bias_stride]);
        assign(out[c * a.out_channel + a.out_at(i % a.pixels())], finish<T>(y, a.silu));
    }
}

template <class T>
void launch(const GroupNormSilu& op, cudaStream_t stream) {
    const auto *x = op.x.shape, *in = op.x.stride, *out = op.out.stride;
    const auto channels = static_cast<int>(x[1]), height = static_cast<int>(x[2]), width = static_cast<int>(x[3]);
    const auto images = static_cast<unsigned>(x[0]);
    const int tiles = op.moments ? static_cast<int>(op.moments.shape[1]) : 0;
    const Arguments<T> a{static_cast<const T*>(op.x.data), static_cast<const T*>(op.weight.data),
                         static_cast<const T*>(op.bias.data), static_cast<T*>(op.out.data),
                         static_cast<float*>(op.moments.data),
                         in[0], out[0], in[1], out[1], in[2], out[2], in[3], out[3],
                         op.weight.stride[0], op.bias.stride[0],
                         channels, op.groups, height, width, tiles, op.eps, op.silu};
    if (size_of(op.x) == 0) return;
    const size_t room = 2 * sizeof(float) * static_cast<size_t>(PackGrid(channels, Pack<T>::size, kThreads).lines) * x[1];
    if (op.moments && in_packs(op.x, 1, channels) && in_packs(op.out, 1, channels) && room <= 48 * 1024) {
        const dim3 blocks(static_cast<unsigned>(tiles), images);
        statistics<T><<<blocks, kThreads, room, stream>>>(a);
        check("group_norm_silu", cudaGetLastError());
        apply<T><<<blocks, kThreads, 2 * sizeof(float) * static_cast<size_t>(op.groups), stream>>>(a);
    } else {
        block_per_group<T><<<dim3(static_cast<unsigned>(op.groups), images), 2 * kThreads, 0, stream>>>(a);
    }
    check("group_norm_silu", cudaGetLastError());
}

}  // namespace

void group_norm_silu_cuda(const GroupNormSilu& op, cudaStream_t stream) {
    const OnDevice device("group_norm_silu", op.x.device);
    with_cuda_type(op.x.dtype, [&](auto* type) { launch<std::remove_pointer_t<decltype(type)>>(op, stream); });
}

}  // namespace hotloop
