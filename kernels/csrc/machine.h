// The instructions that the CUDA attention is written in. A kernel's body includes this file and no CUDA header, so the
// same text also compiles for the CPU: there the tests' emulator stands in, with every thread of a block as a fiber.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include "machine_emulated.h"
#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define HOTLOOP_DEVICE __device__ __forceinline__
#define HOTLOOP_UNROLL _Pragma("unroll")
#define HOTLOOP_UNROLL_SOME _Pragma("unroll 4")
#define HOTLOOP_NO_UNROLL _Pragma("unroll 1")

namespace hotloop::machine {

// Element types by name; in memory both are 16 bits.
struct F16 {};
struct Bf16 {};

HOTLOOP_DEVICE int thread() { return int(threadIdx.x); }
HOTLOOP_DEVICE int block_x() { return int(blockIdx.x); }
HOTLOOP_DEVICE int block_y() { return int(blockIdx.y); }
HOTLOOP_DEVICE int block_z() { return int(blockIdx.z); }

// --- Warps and blocks -------------------------------------------------------------------------------------------------
HOTLOOP_DEVICE void sync() { __syncthreads(); }
HOTLOOP_DEVICE bool sync_any(bool value) { return __syncthreads_or(value) != 0; }
HOTLOOP_DEVICE void sync_warp() { __syncwarp(); }
HOTLOOP_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
HOTLOOP_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// --- Numbers ----------------------------------------------------------------------------------------------------------
// 2^x; flushes results below 2^-126, which no sum of probabilities can feel.
HOTLOOP_DEVICE float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

HOTLOOP_DEVICE float exp(float x) { return expf(x); }

template <class T>
HOTLOOP_DEVICE uint32_t pack(float low, float high);
template <>
HOTLOOP_DEVICE uint32_t pack<F16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <>
HOTLOOP_DEVICE uint32_t pack<Bf16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

HOTLOOP_DEVICE float from_f16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
HOTLOOP_DEVICE float from_bf16(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }

// --- Shared memory ----------------------------------------------------------------------------------------------------
HOTLOOP_DEVICE char* shared() {
    extern __shared__ __align__(1024) char bytes[];
    return bytes;
}
HOTLOOP_DEVICE uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <class T>
HOTLOOP_DEVICE T shared_load(uint32_t address) {
    return *reinterpret_cast<const T*>(__cvta_shared_to_generic(address));
}
template <class T>
HOTLOOP_DEVICE void shared_store(uint32_t address, T value) {
    *reinterpret_cast<T*>(__cvta_shared_to_generic(address)) = value;
}

struct alignas(16) Words {
    uint32_t word[4];
};
struct alignas(16) Floats {
    float value[4];
};

// 16 bytes from global to shared memory without registers, or zeros.
HOTLOOP_DEVICE void copy_async(uint32_t address, const void* global, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(exists ? 16 : 0)
                 : "memory");
}
HOTLOOP_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of this thread's groups are under way.
template <int pending>
HOTLOOP_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- mma.sync ---------------------------------------------------------------------------------------------------------
HOTLOOP_DEVICE void load_matrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
HOTLOOP_DEVICE void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
// Lanes 0-15 give the addresses.
HOTLOOP_DEVICE void load_matrices_transposed(uint32_t (&r)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}

// c [16][8] += a [16][16] b [16][8]
template <class T>
HOTLOOP_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
HOTLOOP_DEVICE void multiply_add<F16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
HOTLOOP_DEVICE void multiply_add<Bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace hotloop::machine
#endif
