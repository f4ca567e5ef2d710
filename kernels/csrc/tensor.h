// Views of arrays that the caller owns.
#pragma once

#include <cstdint>

#include "common.h"

namespace hotloop {

enum class DType { f32, f16, bf16, u8, i32 };

constexpr int64_t bytes_of(DType dtype) {
    return dtype == DType::u8 ? 1 : dtype == DType::f32 || dtype == DType::i32 ? 4 : 2;
}
constexpr bool is_float(DType dtype) { return dtype != DType::u8 && dtype != DType::i32; }

struct Device {
    bool cuda = false;
    int index = 0;

    bool operator==(const Device& other) const { return cuda == other.cuda && index == other.index; }
    bool operator!=(const Device& other) const { return !(*this == other); }
};

constexpr int kMaxDims = 5;

// Strides in elements; an axis of size 1 may carry any stride.
struct Tensor {
    void* data = nullptr;  // null: this optional tensor is absent
    DType dtype = DType::f32;
    Device device;
    int ndim = 0;
    int64_t shape[kMaxDims] = {};
    int64_t stride[kMaxDims] = {};

    explicit operator bool() const { return data != nullptr; }
};

inline int64_t size_of(const Tensor& t) {
    int64_t size = 1;
    for (int i = 0; i < t.ndim; ++i) size *= t.shape[i];
    return size;
}

// Row-major without gaps.
inline bool is_contiguous(const Tensor& t) {
    int64_t expected = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
        if (t.shape[i] != 1 && t.stride[i] != expected) return false;
        expected *= t.shape[i];
    }
    return true;
}

// A batch of images: a pointer and the distance between images; each image is contiguous.
template <class T>
struct Images {
    T* data = nullptr;  // null: this optional tensor is absent
    int64_t stride = 0;

    HOTLOOP_HD explicit operator bool() const { return data != nullptr; }
    HOTLOOP_HD T* operator[](int64_t n) const { return data + n * stride; }
};

}  // namespace hotloop
