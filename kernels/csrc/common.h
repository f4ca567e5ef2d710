// What every CPU operator shares: how functions are built for several instruction sets.
#pragma once

#include <cstdint>

// One build for every x86-64: the loader picks the best copy at start. The copies compute the same bits, because
// contraction to FMA is off for the whole library. Needs ifunc, which only glibc has.
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define HOTLOOP_MULTIVERSION __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
#endif
#ifndef HOTLOOP_MULTIVERSION
#define HOTLOOP_MULTIVERSION
#endif

// Loops called from a multiversioned function must be inlined to be built with its instructions.
#if defined(__GNUC__)
#define HOTLOOP_INLINE inline __attribute__((always_inline))
#define HOTLOOP_RESTRICT __restrict__
#else
#define HOTLOOP_INLINE inline
#define HOTLOOP_RESTRICT
#endif

namespace hotloop {

// The copy that this machine's loader picks.
inline const char* isa() {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f")) return "avx512f";
    if (__builtin_cpu_supports("avx2")) return "avx2";
    return "sse2";
#else
    return "baseline";
#endif
}

}  // namespace hotloop
