// layer_norm: y = (x - mean) / sqrt(variance + eps) * weight + bias, over the last axis.
//
// Layout:  x and out [.., C], every stride free; weight and bias [C]. float32, float16 or bfloat16, all of one kind.
// Limit:   memory: a row is read once and written once; in between it stays in L1.
// Order:   mean first, then the variance about it, both in float32 by sum_of: the same bits on every instruction set and
//          for every count of threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops.h"
#include "rows.h"
#include "threads.h"

namespace hotloop {
namespace {

template <class T>
HOTLOOP_INLINE void normalise(const float* x, const float* weight, const float* bias, float eps, T* out, int64_t stride,
                              int64_t n) {
    const float mean = sum_of(n, [=](int64_t i) HOTLOOP_INLINE_LAMBDA { return x[i]; }) / static_cast<float>(n);
    const float square = sum_of(n, [=](int64_t i) HOTLOOP_INLINE_LAMBDA { return (x[i] - mean) * (x[i] - mean); });
    const float scale = 1.0f / std::sqrt(square / static_cast<float>(n) + eps);
    store(out, stride, n, [=](int64_t i) HOTLOOP_INLINE_LAMBDA { return (x[i] - mean) * scale * weight[i] + bias[i]; });
}

template <class T>
void run(const LayerNorm& op) {
    const int last = op.x.ndim - 1;
    const int64_t channels = op.x.shape[last];
    const Rows in = rows_of(op.x), out = rows_of(op.out);
    std::vector<float> copies(2 * channels);
    const float* weight = load(static_cast<const T*>(op.weight.data), op.weight.stride[0], channels, copies.data());
    const float* bias = load(static_cast<const T*>(op.bias.data), op.bias.stride[0], channels, &copies[channels]);

    parallel_ranges(in.count, channels, [&](int64_t first, int64_t end) {
        float* copy = scratch(channels);
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            for (int64_t row = first; row < end; ++row) {
                const T* from = static_cast<const T*>(op.x.data) + offset_of(in, row);
                T* to = static_cast<T*>(op.out.data) + offset_of(out, row);
                const float* x = load(from, op.x.stride[last], channels, copy);
                normalise(x, weight, bias, op.eps, to, op.out.stride[last], channels);
            }
        });
    });
}

}  // namespace

void layer_norm(const LayerNorm& op) {
    with_type(op.x.dtype, [&](auto* type) { run<std::remove_pointer_t<decltype(type)>>(op); });
}

}  // namespace hotloop
