// Views of a batch of images: a pointer and the distance between images; each image is contiguous.
#pragma once

#include <cstdint>

namespace hotloop {

template <class T>
struct Images {
    T* data = nullptr;  // null: this optional tensor is absent
    int64_t stride = 0;

    explicit operator bool() const { return data != nullptr; }
    T* operator[](int64_t n) const { return data + n * stride; }
};

}  // namespace hotloop
