// The instructions that the CUDA attention is written in. A kernel's body includes this file and no CUDA header, so the
// same text also compiles for the CPU: there the tests' emulator stands in, with every thread of a block as a fiber.
#pragma once

#include <cstdint>

#include "common.h"

#if !defined(__CUDACC__)
#include "machine_emulated.h"
#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define HOTLOOP_DEVICE __device__ __forceinline__
#define HOTLOOP_UNROLL_SOME _Pragma("unroll 2")
#define HOTLOOP_NO_UNROLL _Pragma("unroll 1")

namespace hotloop::machine {

// Element types by name; in memory both are 16 bits.
struct F16 {};
struct Bf16 {};

HOTLOOP_DEVICE int thread() { return int(threadIdx.x); }
HOTLOOP_DEVICE int block_x() { return int(blockIdx.x); }
HOTLOOP_DEVICE int block_y() { return int(blockIdx.y); }
HOTLOOP_DEVICE int block_z() { return int(blockIdx.z); }

// --- Warps and blocks ---
HOTLOOP_DEVICE void sync() { __syncthreads(); }
HOTLOOP_DEVICE bool sync_any(bool value) { return __syncthreads_or(value) != 0; }
HOTLOOP_DEVICE void sync_warp() { __syncwarp(); }
HOTLOOP_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
// The same in the whole warp, and known to the compiler to be.
HOTLOOP_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }
HOTLOOP_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// --- Numbers ---

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

// --- Shared memory ---
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

// --- mma.sync ---
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
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
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

// --- Hopper (sm_90a): barriers in shared memory, the tensor memory accelerator, wgmma ---
using TensorMap = CUtensorMap;

template <int count>
HOTLOOP_DEVICE void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
HOTLOOP_DEVICE void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

HOTLOOP_DEVICE void barrier_start(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After all are started, before the block's sync(): the accelerator must see them too.
HOTLOOP_DEVICE void barriers_started() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
HOTLOOP_DEVICE void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrive, and let the phase also wait for so many bytes.
HOTLOOP_DEVICE void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the phase of this parity is over; a fresh barrier is in phase 0, as if phase 1 were over.
HOTLOOP_DEVICE void barrier_wait(uint32_t barrier, int parity) {
    uint32_t over = 0;
    while (!over)
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(over)
                     : "r"(barrier), "r"(parity)
                     : "memory");
}

// Named barriers of the block, among `threads` threads: sync arrives and waits, arrive does not wait.
HOTLOOP_DEVICE void named_sync(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
HOTLOOP_DEVICE void named_arrive(int name, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// A box of the map's tensor from (column, token, head, image) on; its bytes count for the barrier's phase.
HOTLOOP_DEVICE void load_box(uint32_t target, const TensorMap& map, uint32_t barrier, int column, int token, int head,
                             int image) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5,%6}], "
        "[%2];" ::"r"(target),
        "l"(&map), "r"(barrier), "r"(column), "r"(token), "r"(head), "r"(image)
        : "memory");
}

// The registers of wgmma: written (or read) before `start`, untouched until `finish` of their group. `hold` keeps the
// compiler from moving their uses across either.
template <int kCount>
HOTLOOP_DEVICE void hold(float (&registers)[kCount]) {
    HOTLOOP_UNROLL
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
HOTLOOP_DEVICE void hold(uint32_t (&registers)[kCount][4]) {
    HOTLOOP_UNROLL
    for (int i = 0; i < kCount; ++i) {
        HOTLOOP_UNROLL
        for (int k = 0; k < 4; ++k) asm volatile("" : "+r"(registers[i][k])::"memory");
    }
}
HOTLOOP_DEVICE void wgmma_start() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
HOTLOOP_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `pending` groups of this warpgroup are under way.
template <int pending>
HOTLOOP_DEVICE void wgmma_finish() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// d [64][N] = or += A B: N = 2 x the count of d's registers; A [64][16] by descriptor (columns contiguous) or in
// registers as of mma.sync, a warp's 16 rows each; B [16][N] by descriptor, the sum's dimension contiguous beside a
// described A, N contiguous beside one in registers. The text of the instruction must name every register.
#define HOTLOOP_D20 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19"
#define HOTLOOP_D32 HOTLOOP_D20 ",%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define HOTLOOP_D40 HOTLOOP_D32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define HOTLOOP_D64 \
    HOTLOOP_D40 ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define HOTLOOP_D80 HOTLOOP_D64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"

#define HOTLOOP_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HOTLOOP_F20(i) HOTLOOP_F4(i), HOTLOOP_F4(i + 4), HOTLOOP_F4(i + 8), HOTLOOP_F4(i + 12), HOTLOOP_F4(i + 16)
#define HOTLOOP_F32(i) HOTLOOP_F20(i), HOTLOOP_F4(i + 20), HOTLOOP_F4(i + 24), HOTLOOP_F4(i + 28)

#define HOTLOOP_WGMMA_DESCRIBED(TYPE, TYPE_NAME, COUNT, N, REGISTERS, A, B, MORE, ...)                        \
    template <>                                                                                               \
    HOTLOOP_DEVICE void wgmma_described<TYPE, COUNT>(float (&d)[COUNT], uint64_t a, uint64_t b, bool more) {  \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" MORE ", 0;\nwgmma.mma_async.sync.aligned.m64n" N    \
                     "k16.f32." TYPE_NAME "." TYPE_NAME " {" REGISTERS "}, %" A ", %" B ", p, 1, 1, 0, 0;\n}" \
                     : __VA_ARGS__                                                                            \
                     : "l"(a), "l"(b), "r"(int(more)));                                                       \
    }
#define HOTLOOP_WGMMA_REGISTERS(TYPE, TYPE_NAME, COUNT, N, REGISTERS, A0, A1, A2, A3, B, ...)                 \
    template <>                                                                                               \
    HOTLOOP_DEVICE void wgmma_registers<TYPE, COUNT>(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE_NAME "." TYPE_NAME " {" REGISTERS  \
                     "}, {%" A0 ",%" A1 ",%" A2 ",%" A3 "}, %" B ", 1, 1, 1, 1;"                              \
                     : __VA_ARGS__                                                                            \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                   \
    }

template <class T, int kCount>
HOTLOOP_DEVICE void wgmma_described(float (&d)[kCount], uint64_t a, uint64_t b, bool more);
template <class T, int kCount>
HOTLOOP_DEVICE void wgmma_registers(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b);

HOTLOOP_WGMMA_DESCRIBED(F16, "f16", 32, "64", HOTLOOP_D32, "32", "33", "34", HOTLOOP_F32(0))
HOTLOOP_WGMMA_DESCRIBED(F16, "f16", 64, "128", HOTLOOP_D64, "64", "65", "66", HOTLOOP_F32(0), HOTLOOP_F32(32))
HOTLOOP_WGMMA_REGISTERS(F16, "f16", 20, "40", HOTLOOP_D20, "20", "21", "22", "23", "24", HOTLOOP_F20(0))
HOTLOOP_WGMMA_REGISTERS(F16, "f16", 40, "80", HOTLOOP_D40, "40", "41", "42", "43", "44", HOTLOOP_F20(0),
                        HOTLOOP_F20(20))
HOTLOOP_WGMMA_REGISTERS(F16, "f16", 80, "160", HOTLOOP_D80, "80", "81", "82", "83", "84", HOTLOOP_F20(0),
                        HOTLOOP_F20(20), HOTLOOP_F20(40), HOTLOOP_F20(60))
HOTLOOP_WGMMA_DESCRIBED(Bf16, "bf16", 32, "64", HOTLOOP_D32, "32", "33", "34", HOTLOOP_F32(0))
HOTLOOP_WGMMA_DESCRIBED(Bf16, "bf16", 64, "128", HOTLOOP_D64, "64", "65", "66", HOTLOOP_F32(0), HOTLOOP_F32(32))
HOTLOOP_WGMMA_REGISTERS(Bf16, "bf16", 20, "40", HOTLOOP_D20, "20", "21", "22", "23", "24", HOTLOOP_F20(0))
HOTLOOP_WGMMA_REGISTERS(Bf16, "bf16", 40, "80", HOTLOOP_D40, "40", "41", "42", "43", "44", HOTLOOP_F20(0),
                        HOTLOOP_F20(20))
HOTLOOP_WGMMA_REGISTERS(Bf16, "bf16", 80, "160", HOTLOOP_D80, "80", "81", "82", "83", "84", HOTLOOP_F20(0),
                        HOTLOOP_F20(20), HOTLOOP_F20(40), HOTLOOP_F20(60))

#undef HOTLOOP_D20
#undef HOTLOOP_D32
#undef HOTLOOP_D40
#undef HOTLOOP_D64
#undef HOTLOOP_D80
#undef HOTLOOP_F4
#undef HOTLOOP_F20
#undef HOTLOOP_F32
#undef HOTLOOP_WGMMA_DESCRIBED
#undef HOTLOOP_WGMMA_REGISTERS

}  // namespace hotloop::machine
#endif
