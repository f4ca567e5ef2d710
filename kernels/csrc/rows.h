// Rows of values in any layout: where they start, and lines of them as floats.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common.h"
#include "half.h"
#include "tensor.h"

namespace hotloop {

// All axes of a tensor but the last, neighbours merged where one stride serves both: [2, 64, 64, C] is often one axis.
struct Rows {
    int64_t count = 1;
    int ndim = 0;
    int64_t size[kMaxDims] = {};
    int64_t stride[kMaxDims] = {};
};

inline Rows rows_of(const Tensor& t) {
    Rows rows;
    for (int i = 0; i + 1 < t.ndim; ++i) {
        rows.count *= t.shape[i];
        if (t.shape[i] == 1) continue;
        const int last = rows.ndim - 1;
        if (last >= 0 && rows.stride[last] == t.stride[i] * t.shape[i]) {
            rows.size[last] *= t.shape[i];
            rows.stride[last] = t.stride[i];
        } else {
            rows.size[rows.ndim] = t.shape[i];
            rows.stride[rows.ndim++] = t.stride[i];
        }
    }
    return rows;
}

// In values from the tensor's start.
HOTLOOP_HD inline int64_t offset_of(const Rows& rows, int64_t row) {
    int64_t offset = 0;
    for (int i = rows.ndim - 1; i > 0; --i) {
        offset += row % rows.size[i] * rows.stride[i];
        row /= rows.size[i];
    }
    return rows.ndim > 0 ? offset + row * rows.stride[0] : 0;
}

// Calls body(T*) with T = float, Half or Bfloat, a null pointer that carries the type.
template <class Body>
void with_type(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::f16: return body(static_cast<Half*>(nullptr));
        case DType::bf16: return body(static_cast<Bfloat*>(nullptr));
        default: return body(static_cast<float*>(nullptr));
    }
}

// n values as floats: those in place where they are floats side by side, else a copy.
template <class T>
HOTLOOP_INLINE const float* load(const T* from, int64_t stride, int64_t n, float* HOTLOOP_RESTRICT copy) {
    if (stride == 1) {
        if constexpr (std::is_same_v<T, float>) {
            return from;
        } else {
            for (int64_t i = 0; i < n; ++i) copy[i] = to_float(from[i]);
        }
    } else {
        for (int64_t i = 0; i < n; ++i) copy[i] = to_float(from[i * stride]);
    }
    return copy;
}

// value(0), .., value(n - 1) to n places. The places may be those that value(i) reads, each only at its own i.
template <class T, class Value>
HOTLOOP_INLINE void store(T* to, int64_t stride, int64_t n, const Value& value) {
    if (stride == 1) {
        HOTLOOP_NO_DEPENDENCE
        for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(value(i));
    } else {
        for (int64_t i = 0; i < n; ++i) to[i * stride] = from_float<T>(value(i));
    }
}

// value(0) + .. + value(n - 1) in 32 partial sums, which every instruction set adds in the same order.
template <class Value>
HOTLOOP_INLINE float sum_of(int64_t n, const Value& value) {
    constexpr int kLanes = 32;
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += value(i + lane);
    for (int lane = 0; i < n; ++i, ++lane) lanes[lane] += value(i);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

}  // namespace hotloop
