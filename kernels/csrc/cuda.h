// What every CUDA operator shares: checked calls, the device of a launch, dtypes, packs of 16 bytes and sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "tensor.h"

namespace hotloop {

inline void check(const char* op, cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("[") + op + "] CUDA: " + cudaGetErrorString(error));
}

// The device of the arrays is the current one while this lives; the caller's own comes back after.
class OnDevice {
  public:
    OnDevice(const char* op, const Device& device) {
        check(op, cudaGetDevice(&before_));
        changed_ = before_ != device.index;
        if (changed_) check(op, cudaSetDevice(device.index));
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Calls body(T*) with T = float, __half or __nv_bfloat16, a null pointer that carries the type.
template <class Body>
void with_cuda_type(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::f16: return body(static_cast<__half*>(nullptr));
        case DType::bf16: return body(static_cast<__nv_bfloat16*>(nullptr));
        default: return body(static_cast<float*>(nullptr));
    }
}

__device__ inline float as_float(float value) { return value; }
__device__ inline float as_float(__half value) { return __half2float(value); }
__device__ inline float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void assign(float& to, float value) { to = value; }
__device__ inline void assign(__half& to, float value) { to = __float2half_rn(value); }
__device__ inline void assign(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }

// n values that one instruction moves, where n is the whole of 16 bytes.
template <class T, int n = 16 / static_cast<int>(sizeof(T))>
struct alignas(sizeof(T) * n) Pack {
    static constexpr int size = n;
    T value[n];
};

template <class T, int n>
__device__ inline Pack<T, n> read_pack(const T* from) {
    return *reinterpret_cast<const Pack<T, n>*>(from);
}
template <class T, int n>
__device__ inline void write_pack(T* to, const Pack<T, n>& pack) {
    *reinterpret_cast<Pack<T, n>*>(to) = pack;
}

// True when rows along `axis` can be moved in packs of 16 bytes, `run` values being moved from each start: the values
// lie side by side, every start is aligned and the run is whole packs.
inline bool in_packs(const Tensor& t, int axis, int64_t run) {
    const int64_t pack = 16 / bytes_of(t.dtype);
    bool fits = t.stride[axis] == 1 && run % pack == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
    for (int i = 0; i < t.ndim; ++i) fits = fits && (i == axis || t.shape[i] == 1 || t.stride[i] % pack == 0);
    return fits;
}

// The sum over a warp, on every lane, always added in one order.
__device__ inline float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// The sum over a block, on every thread. shared: 32 floats; the next call may use them again.
__device__ inline float block_sum(float value, float* shared) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = (static_cast<int>(blockDim.x) + 31) / 32;
    value = warp_sum(value);
    __syncthreads();
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    return warp_sum(lane < warps ? shared[lane] : 0.0f);
}

}  // namespace hotloop
