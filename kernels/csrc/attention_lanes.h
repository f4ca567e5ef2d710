// The vectors that attention is written in: kLanes queries side by side, one policy per instruction set.
//
// A policy has the type V of kLanes floats and static functions on it. It is only defined where the translation unit is
// compiled for its instruction set; everything here is inlined, so that no code of one set can be linked into
// another's.
#pragma once

#include <cstdint>
#include <limits>

#include "common.h"
#include "half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace hotloop {
namespace {

// 2^x = 1 + x (c1 + x (c2 + ...)) on [-1/2, 1/2], least relative error with 2^0 exactly 1, so that a query that sees
// one key returns its value unchanged. Degree 6: 2e-9, nothing beside the rounding. Degree 4: 3e-6, a thousandth of the
// step of a bfloat16, which is what the result becomes there.
template <int kDegree>
struct Exp2;
template <>
struct Exp2<6> {
    static constexpr float c[6] = {0.6931472f, 0.24022648f, 0.055503324f, 0.009618437f, 0.0013398874f, 0.00015353362f};
};
template <>
struct Exp2<4> {
    static constexpr float c[4] = {0.6931242f, 0.24024099f, 0.055906426f, 0.009582853f};
};

// 2^x for x <= 0 (some ulp above do no harm), 0 where that would be subnormal.
constexpr float kLowest = -126.0f;
// Added, it rounds to a whole number and leaves that number's exponent in the low bits.
constexpr float kToExponent = 12582912.0f + 127.0f;

// Step by step over all N, so that the latencies of one chain hide behind the others.
template <class L, int kDegree, int N>
HOTLOOP_INLINE void exp2(typename L::V (&x)[N]) {
    using V = typename L::V;
    V exponent[N], f[N], p[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) exponent[n] = L::add(x[n], L::spread(kToExponent));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) f[n] = L::sub(exponent[n], L::spread(kToExponent));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) f[n] = L::sub(x[n], f[n]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) p[n] = L::spread(Exp2<kDegree>::c[kDegree - 1]);
#pragma GCC unroll 8
    for (int k = kDegree - 2; k >= -1; --k)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) p[n] = L::fma(p[n], f[n], L::spread(k < 0 ? 1.0f : Exp2<kDegree>::c[k]));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) x[n] = L::power(p[n], exponent[n], x[n]);
}

// Four lanes in plain C++: what every compiler turns into the vectors of the machine's baseline.
struct Portable {
    static constexpr int kLanes = 4;
    static constexpr int kVectors = 2;  // vectors of queries per tile: 6 rows x 2 fill the 16 registers
    struct V {
        float x[4];
    };

    template <class F>
    static HOTLOOP_INLINE V each(F f) {
        return {{f(0), f(1), f(2), f(3)}};
    }
    static HOTLOOP_INLINE V spread(float a) { return {{a, a, a, a}}; }
    static HOTLOOP_INLINE V load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static HOTLOOP_INLINE void store(float* p, V a) {
        for (int i = 0; i < 4; ++i) p[i] = a.x[i];
    }
    static HOTLOOP_INLINE V add(V a, V b) {
        return each([&](int i) { return a.x[i] + b.x[i]; });
    }
    static HOTLOOP_INLINE V sub(V a, V b) {
        return each([&](int i) { return a.x[i] - b.x[i]; });
    }
    static HOTLOOP_INLINE V mul(V a, V b) {
        return each([&](int i) { return a.x[i] * b.x[i]; });
    }
    static HOTLOOP_INLINE V div(V a, V b) {
        return each([&](int i) { return a.x[i] / b.x[i]; });
    }
    static HOTLOOP_INLINE V fma(V a, V b, V c) {
        return each([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
    }
    // The second where either is NaN, as in the other sets.
    static HOTLOOP_INLINE V max(V a, V b) {
        return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
    }
    // other where a is value, else then.
    static HOTLOOP_INLINE V where_is(V a, float value, V other, V then) {
        return each([&](int i) { return a.x[i] == value ? other.x[i] : then.x[i]; });
    }
    // p 2^exponent, or 0 where x <= kLowest. A NaN in p stays one.
    static HOTLOOP_INLINE V power(V p, V exponent, V x) {
        return each([&](int i) { return x.x[i] <= kLowest ? 0.0f : p.x[i] * float_of(bits_of(exponent.x[i]) << 23); });
    }
    // Four columns of kLanes rows: x[c] gets column c.
    static HOTLOOP_INLINE void load_columns(const float* rows, int64_t stride, V (&x)[4]) {
        for (int c = 0; c < 4; ++c) x[c] = each([&](int i) { return rows[i * stride + c]; });
    }
    static HOTLOOP_INLINE void store_columns(float* rows, int64_t stride, const V (&x)[4]) {
        for (int c = 0; c < 4; ++c)
            for (int i = 0; i < 4; ++i) rows[i * stride + c] = x[c].x[i];
    }
    static HOTLOOP_INLINE void widen(const Half* in, float* out, int64_t n) {
        for (int64_t i = 0; i < n; ++i) out[i] = to_float(in[i]);
    }
    static HOTLOOP_INLINE void narrow(const float* in, Half* out, int64_t n) {
        for (int64_t i = 0; i < n; ++i) out[i] = from_float<Half>(in[i]);
    }
};

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
struct Avx2 {
    static constexpr int kLanes = 8;
    static constexpr int kVectors = 2;
    using V = __m256;

    static HOTLOOP_INLINE V spread(float a) { return _mm256_set1_ps(a); }
    static HOTLOOP_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
    static HOTLOOP_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a); }
    static HOTLOOP_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
    static HOTLOOP_INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static HOTLOOP_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static HOTLOOP_INLINE V div(V a, V b) { return _mm256_div_ps(a, b); }
    static HOTLOOP_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static HOTLOOP_INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }
    static HOTLOOP_INLINE V where_is(V a, float value, V other, V then) {
        return _mm256_blendv_ps(then, other, _mm256_cmp_ps(a, spread(value), _CMP_EQ_OQ));
    }
    static HOTLOOP_INLINE V power(V p, V exponent, V x) {
        const V factor = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(exponent), 23));
        return _mm256_andnot_ps(_mm256_cmp_ps(x, spread(kLowest), _CMP_LE_OQ), mul(p, factor));
    }
    static HOTLOOP_INLINE V two_quads(const float* low, const float* high) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    }
    // Quads of four columns lie lane by lane so that a 4 x 4 transposition inside each 128 bits brings the rows in
    // order.
    static HOTLOOP_INLINE void transpose(V (&x)[4]) {
        const V a = _mm256_unpacklo_ps(x[0], x[1]), b = _mm256_unpackhi_ps(x[0], x[1]);
        const V c = _mm256_unpacklo_ps(x[2], x[3]), d = _mm256_unpackhi_ps(x[2], x[3]);
        x[0] = _mm256_shuffle_ps(a, c, 0x44);
        x[1] = _mm256_shuffle_ps(a, c, 0xee);
        x[2] = _mm256_shuffle_ps(b, d, 0x44);
        x[3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    static HOTLOOP_INLINE void load_columns(const float* rows, int64_t stride, V (&x)[4]) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) x[r] = two_quads(rows + r * stride, rows + (r + 4) * stride);
        transpose(x);
    }
    static HOTLOOP_INLINE void store_columns(float* rows, int64_t stride, const V (&columns)[4]) {
        V x[4] = {columns[0], columns[1], columns[2], columns[3]};
        transpose(x);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            _mm_storeu_ps(rows + r * stride, _mm256_castps256_ps128(x[r]));
            _mm_storeu_ps(rows + (r + 4) * stride, _mm256_extractf128_ps(x[r], 1));
        }
    }
    static HOTLOOP_INLINE void widen(const Half* in, float* out, int64_t n) {
        int64_t i = 0;
        for (; i + 8 <= n; i += 8)
            store(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
        for (; i < n; ++i) out[i] = to_float(in[i]);
    }
    static HOTLOOP_INLINE void narrow(const float* in, Half* out, int64_t n) {
        int64_t i = 0;
        for (; i + 8 <= n; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(load(in + i), 0));
        for (; i < n; ++i) out[i] = from_float<Half>(in[i]);
    }
};
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
struct Avx512 {
    static constexpr int kLanes = 16;
    static constexpr int kVectors =
        4;  // 6 rows x 4 vectors: 24 accumulators, 4 operands and a broadcast of 32 registers
    using V = __m512;

    static HOTLOOP_INLINE V spread(float a) { return _mm512_set1_ps(a); }
    static HOTLOOP_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
    static HOTLOOP_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a); }
    static HOTLOOP_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
    static HOTLOOP_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static HOTLOOP_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static HOTLOOP_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
    static HOTLOOP_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
    static HOTLOOP_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }
    static HOTLOOP_INLINE V where_is(V a, float value, V other, V then) {
        return _mm512_mask_mov_ps(then, _mm512_cmp_ps_mask(a, spread(value), _CMP_EQ_OQ), other);
    }
    static HOTLOOP_INLINE V power(V p, V exponent, V x) {
        const V factor = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(exponent), 23));
        return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(x, spread(kLowest), _CMP_NLE_UQ), p, factor);
    }
    static HOTLOOP_INLINE void transpose(V (&x)[4]) {
        const V a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
        const V c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
        x[0] = _mm512_shuffle_ps(a, c, 0x44);
        x[1] = _mm512_shuffle_ps(a, c, 0xee);
        x[2] = _mm512_shuffle_ps(b, d, 0x44);
        x[3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    static HOTLOOP_INLINE void load_columns(const float* rows, int64_t stride, V (&x)[4]) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            V quads = _mm512_castps128_ps512(_mm_loadu_ps(rows + r * stride));
            quads = _mm512_insertf32x4(quads, _mm_loadu_ps(rows + (r + 4) * stride), 1);
            quads = _mm512_insertf32x4(quads, _mm_loadu_ps(rows + (r + 8) * stride), 2);
            x[r] = _mm512_insertf32x4(quads, _mm_loadu_ps(rows + (r + 12) * stride), 3);
        }
        transpose(x);
    }
    static HOTLOOP_INLINE void store_columns(float* rows, int64_t stride, const V (&columns)[4]) {
        V x[4] = {columns[0], columns[1], columns[2], columns[3]};
        transpose(x);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            _mm_storeu_ps(rows + r * stride, _mm512_castps512_ps128(x[r]));
            _mm_storeu_ps(rows + (r + 4) * stride, _mm512_extractf32x4_ps(x[r], 1));
            _mm_storeu_ps(rows + (r + 8) * stride, _mm512_extractf32x4_ps(x[r], 2));
            _mm_storeu_ps(rows + (r + 12) * stride, _mm512_extractf32x4_ps(x[r], 3));
        }
    }
    static HOTLOOP_INLINE void widen(const Half* in, float* out, int64_t n) {
        int64_t i = 0;
        for (; i + 16 <= n; i += 16)
            store(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i))));
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
        for (; i < n; ++i) out[i] = to_float(in[i]);
    }
    static HOTLOOP_INLINE void narrow(const float* in, Half* out, int64_t n) {
        int64_t i = 0;
        for (; i + 16 <= n; i += 16)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtps_ph(load(in + i), 0));
        for (; i + 8 <= n; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0));
        for (; i < n; ++i) out[i] = from_float<Half>(in[i]);
    }
};
#endif

// How a product q.k or p.v is taken. An Element is what one broadcast holds: one float, or two neighbours of the summed
// axis as bfloat16.
template <class L>
struct SingleFloats : L {
    using Element = float;
    using X = typename L::V;
    static constexpr int kPerElement = 1;
    static constexpr int kDegree = 6;

    static HOTLOOP_INLINE X operand(const Element* p) { return L::load(p); }
    static HOTLOOP_INLINE X broadcast(const Element* p) { return L::spread(*p); }
    static HOTLOOP_INLINE typename L::V mac(typename L::V sum, X a, X b) { return L::fma(a, b, sum); }

    using L::narrow;
    static HOTLOOP_INLINE void narrow(const float* in, Bfloat* out, int64_t n) {
        for (int64_t i = 0; i < n; ++i) out[i] = from_float<Bfloat>(in[i]);
    }
};

#if defined(__AVX512BF16__)
// vdpbf16ps: twice the products per instruction, exact, summed in float32.
struct Bfloat16Pairs : Avx512 {
    using Element = uint32_t;
    using X = __m512bh;
    static constexpr int kPerElement = 2;
    static constexpr int kDegree = 4;

    static HOTLOOP_INLINE X operand(const Element* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static HOTLOOP_INLINE X broadcast(const Element* p) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(*p)); }
    static HOTLOOP_INLINE V mac(V sum, X a, X b) { return _mm512_dpbf16_ps(sum, a, b); }
    // Lane by lane: the first in the low half, the second in the high half.
    static HOTLOOP_INLINE void store_pair(Element* p, V first, V second) {
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, halves));
    }

    using Avx512::narrow;
    static HOTLOOP_INLINE void narrow(const float* in, Bfloat* out, int64_t n) {  // n a multiple of 8
        for (int64_t i = 0; i < n; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), (__m128i)_mm256_cvtneps_pbh(_mm256_loadu_ps(in + i)));
    }
};
#endif

}  // namespace
}  // namespace hotloop
