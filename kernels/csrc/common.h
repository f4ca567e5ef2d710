// What every CPU operator shares: the instruction sets, and how a body is built for each of them.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#if defined(__GNUC__)
#define HOTLOOP_INLINE inline __attribute__((always_inline))
#define HOTLOOP_INLINE_LAMBDA __attribute__((always_inline))
#define HOTLOOP_RESTRICT __restrict__
#else
#define HOTLOOP_INLINE inline
#define HOTLOOP_INLINE_LAMBDA
#define HOTLOOP_RESTRICT
#endif

// Before a loop: no turn of it writes what another one reads.
#if defined(__clang__)
#define HOTLOOP_NO_DEPENDENCE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define HOTLOOP_NO_DEPENDENCE _Pragma("GCC ivdep")
#else
#define HOTLOOP_NO_DEPENDENCE
#endif

// Functions that a CPU test calls and a kernel runs.
#if defined(__CUDACC__)
#define HOTLOOP_HD __host__ __device__
#else
#define HOTLOOP_HD
#endif
#if defined(__CUDA_ARCH__)
#define HOTLOOP_UNROLL _Pragma("unroll")
#else
#define HOTLOOP_UNROLL
#endif

// What a function of each instruction set may use; Isa stands for exactly these.
#if defined(__x86_64__) && defined(__GNUC__)
#define HOTLOOP_X86 1
#define HOTLOOP_AVX2 __attribute__((target("avx2,fma,f16c")))
#define HOTLOOP_AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#endif

namespace hotloop {

// An argument that breaks an operator's rule; Python sees KernelError(op, rule, got).
struct Error : std::exception {
    std::string op, rule, got;

    Error(std::string op, std::string rule, std::string got)
        : op(std::move(op)), rule(std::move(rule)), got(std::move(got)) {}
    const char* what() const noexcept override { return rule.c_str(); }
};

// One binary for all of them, chosen at run time. scalar: what every machine of this architecture has.
enum class Isa { scalar, avx2, avx512 };

Isa best_isa();         // the highest that this machine runs
Isa isa();              // the one in use: the best, unless set_isa lowered it
void set_isa(Isa isa);  // not above best_isa()
const char* name_of(Isa isa);

#ifdef HOTLOOP_X86
template <class Body>
HOTLOOP_AVX2 void run_avx2(const Body& body) {
    body();
}
template <class Body>
HOTLOOP_AVX512 void run_avx512(const Body& body) {
    body();
}
#endif

// Runs a body compiled for the instruction set in use. The body is a lambda marked HOTLOOP_INLINE_LAMBDA, and what it
// calls is HOTLOOP_INLINE: inlined here, its loops are vectorised for the set. All sets give the same bits, because
// contraction to FMA is off for the whole library.
template <class Body>
void with_isa(const Body& body) {
#ifdef HOTLOOP_X86
    switch (isa()) {
        case Isa::avx512: return run_avx512(body);
        case Isa::avx2: return run_avx2(body);
        case Isa::scalar: break;
    }
#endif
    body();
}

}  // namespace hotloop
