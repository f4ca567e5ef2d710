// The vectors that warp_blend is written in: kLanes neighbouring pixels, one policy per instruction set.
//
// A policy has V, kLanes floats; I, as many whole numbers; B, the pixels' bytes or half of their words, four a pixel;
// and static functions on them. It is only defined where the translation unit is compiled for its instruction set;
// everything here is inlined, so that no code of one set can be linked into another's. No operation is contracted, and
// all policies give the same bits.
//
// Taps of pixel i lie 16 bytes long (left and right, above and below) at place(i), so that lane k of 128 bits of the
// r-th vector holds pixel 4 k + r: weights reach it by a shuffle within lanes, and packing brings pixels into order.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"
#include "warp_blend_value.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace hotloop {
namespace {

template <class L>
constexpr int place(int pixel) {
    return pixel % 4 * (L::kLanes / 4) + pixel / 4;
}

// Words of a group of pixels in the making: p has the first two of every four pixels, q the others.
template <class L>
struct Mixed {
    typename L::B p, q;
};

// Four lanes in plain C++.
struct Portable {
    static constexpr int kLanes = 4;
    struct V {
        float x[4];
    };
    struct I {
        int32_t x[4];
    };
    struct B {
        int32_t x[8];
    };

    template <class F>
    static HOTLOOP_INLINE V each(F f) {
        return {{f(0), f(1), f(2), f(3)}};
    }
    template <class F>
    static HOTLOOP_INLINE I each_whole(F f) {
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
    static HOTLOOP_INLINE V min(V a, V b) {
        return each([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
    }
    static HOTLOOP_INLINE V max(V a, V b) {
        return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
    }
    static HOTLOOP_INLINE bool all_in(V a, V low, V high) {
        bool all = true;
        for (int i = 0; i < 4; ++i) all &= a.x[i] >= low.x[i] && a.x[i] <= high.x[i];
        return all;
    }
    static HOTLOOP_INLINE bool any(V a) {
        bool some = false;
        for (int i = 0; i < 4; ++i) some |= a.x[i] > 0.0f;
        return some;
    }
    static HOTLOOP_INLINE I load(const int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
    static HOTLOOP_INLINE void store(int32_t* p, I a) {
        for (int i = 0; i < 4; ++i) p[i] = a.x[i];
    }
    static HOTLOOP_INLINE I spread(int32_t a) { return {{a, a, a, a}}; }
    static HOTLOOP_INLINE I truncated(V a) {
        return each_whole([&](int i) { return static_cast<int32_t>(a.x[i]); });
    }
    static HOTLOOP_INLINE I nearest(V a) {
        return each_whole([&](int i) { return rounded(a.x[i]); });
    }
    static HOTLOOP_INLINE V floats(I a) {
        return each([&](int i) { return static_cast<float>(a.x[i]); });
    }
    static HOTLOOP_INLINE I add(I a, I b) {
        return each_whole([&](int i) { return a.x[i] + b.x[i]; });
    }
    static HOTLOOP_INLINE I mul(I a, I b) {
        return each_whole([&](int i) { return a.x[i] * b.x[i]; });
    }
    // Two words a lane: low + 65536 high.
    static HOTLOOP_INLINE I pair(I low, I high) {
        return each_whole([&](int i) { return static_cast<int32_t>(low.x[i] + (static_cast<uint32_t>(high.x[i]) << 16)); });
    }
    // nodes[index] and its right neighbour.
    static HOTLOOP_INLINE void neighbours(const float* nodes, const int32_t* index, V& left, V& right) {
        left = each([&](int i) { return nodes[index[i]]; });
        right = each([&](int i) { return nodes[index[i] + 1]; });
    }

    // 8 bytes of each, one after the other.
    static HOTLOOP_INLINE void copy_pair(uint8_t* to, const uint8_t* above, const uint8_t* below) {
        std::memcpy(to, above, 8);
        std::memcpy(to + 8, below, 8);
    }
    static HOTLOOP_INLINE int32_t low(int32_t pair) { return static_cast<int16_t>(pair); }
    static HOTLOOP_INLINE int32_t high(int32_t pair) { return pair >> 16; }
    static HOTLOOP_INLINE Mixed<Portable> sample(const uint8_t* taps, I above, I below) {
        Mixed<Portable> m;
        for (int i = 0; i < 16; ++i) {
            const uint8_t* t = taps + i / 4 * 16 + i % 4;
            const int32_t a = above.x[i / 4], b = below.x[i / 4];
            const int32_t sum = low(a) * t[0] + high(a) * t[4] + (low(b) * t[8] + high(b) * t[12]);
            (i < 8 ? m.p : m.q).x[i % 8] = sum >> kTapShift;
        }
        return m;
    }
    // value factor / 32768, rounded; the factor's words are both that of the pixel.
    static HOTLOOP_INLINE Mixed<Portable> scale(Mixed<Portable> m, I factor) {
        for (int i = 0; i < 8; ++i) {
            m.p.x[i] = scaled(m.p.x[i], low(factor.x[i / 4]));
            m.q.x[i] = scaled(m.q.x[i], low(factor.x[2 + i / 4]));
        }
        return m;
    }
    static HOTLOOP_INLINE B add(B a, B b) {
        for (int i = 0; i < 8; ++i) a.x[i] += b.x[i];
        return a;
    }
    static HOTLOOP_INLINE B sub(B a, B b) {
        for (int i = 0; i < 8; ++i) a.x[i] -= b.x[i];
        return a;
    }
    static HOTLOOP_INLINE Mixed<Portable> words(I red_green, I blue_alpha) {
        Mixed<Portable> m;
        for (int i = 0; i < 16; ++i) {
            const int32_t both = i % 4 < 2 ? red_green.x[i / 4] : blue_alpha.x[i / 4];
            (i < 8 ? m.p : m.q).x[i % 8] = i % 2 ? high(both) : low(both);
        }
        return m;
    }
    static HOTLOOP_INLINE void store(uint8_t* to, const Mixed<Portable>& m) {
        for (int i = 0; i < 16; ++i) {
            const int32_t level = ((i < 8 ? m.p : m.q).x[i % 8] + 64) >> 7;
            to[i] = static_cast<uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
        }
    }
};

#if defined(__AVX2__)
// Two loads and one store of 16 bytes, aligned.
HOTLOOP_INLINE void store_pair(uint8_t* to, const uint8_t* above, const uint8_t* below) {
    const __m128d upper = _mm_castsi128_pd(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(above)));
    _mm_store_pd(reinterpret_cast<double*>(to), _mm_loadh_pd(upper, reinterpret_cast<const double*>(below)));
}

struct Avx2 {
    static constexpr int kLanes = 8;
    using V = __m256;
    using I = __m256i;
    struct B {
        __m256i x;
    };

    static HOTLOOP_INLINE V spread(float a) { return _mm256_set1_ps(a); }
    static HOTLOOP_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
    static HOTLOOP_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a); }
    static HOTLOOP_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
    static HOTLOOP_INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static HOTLOOP_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static HOTLOOP_INLINE V min(V a, V b) { return _mm256_min_ps(a, b); }
    static HOTLOOP_INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }
    static HOTLOOP_INLINE bool all_in(V a, V low, V high) {
        const V inside = _mm256_and_ps(_mm256_cmp_ps(a, low, _CMP_GE_OQ), _mm256_cmp_ps(a, high, _CMP_LE_OQ));
        return _mm256_movemask_ps(inside) == 0xff;
    }
    static HOTLOOP_INLINE bool any(V a) {
        return _mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GT_OQ)) != 0;
    }
    static HOTLOOP_INLINE I load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static HOTLOOP_INLINE void store(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
    static HOTLOOP_INLINE I spread(int32_t a) { return _mm256_set1_epi32(a); }
    static HOTLOOP_INLINE I truncated(V a) { return _mm256_cvttps_epi32(a); }
    static HOTLOOP_INLINE I nearest(V a) { return _mm256_cvtps_epi32(a); }
    static HOTLOOP_INLINE V floats(I a) { return _mm256_cvtepi32_ps(a); }
    static HOTLOOP_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
    static HOTLOOP_INLINE I mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
    static HOTLOOP_INLINE I pair(I low, I high) { return _mm256_or_si256(low, _mm256_slli_epi32(high, 16)); }
    static HOTLOOP_INLINE void neighbours(const float* nodes, const int32_t* index, V& left, V& right) {
        const int32_t first = index[0];
        if (index[kLanes - 1] + 1 - first < kLanes) {
            const V near = load(nodes + first);
            const I at = _mm256_sub_epi32(load(index), spread(first));
            left = _mm256_permutevar8x32_ps(near, at);
            right = _mm256_permutevar8x32_ps(near, add(at, spread(1)));
        } else {
            left = _mm256_i32gather_ps(nodes, load(index), 4);
            right = _mm256_i32gather_ps(nodes + 1, load(index), 4);
        }
    }

    static HOTLOOP_INLINE void copy_pair(uint8_t* to, const uint8_t* above, const uint8_t* below) {
        store_pair(to, above, below);
    }
    static HOTLOOP_INLINE I shuffle_bytes(I a, I order) { return _mm256_shuffle_epi8(a, order); }
    static HOTLOOP_INLINE I in_every_lane(__m128i a) { return _mm256_broadcastsi128_si256(a); }
    template <int r>
    static HOTLOOP_INLINE I weighed(const uint8_t* taps, I above, I below) {
        constexpr char o = -128;
        const I upper = in_every_lane(_mm_setr_epi8(0, o, 4, o, 1, o, 5, o, 2, o, 6, o, 3, o, 7, o));
        const I lower = in_every_lane(_mm_setr_epi8(8, o, 12, o, 9, o, 13, o, 10, o, 14, o, 11, o, 15, o));
        const I x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(taps + r * 32));
        const I sum = add(_mm256_madd_epi16(shuffle_bytes(x, upper), _mm256_shuffle_epi32(above, r * 0x55)),
                          _mm256_madd_epi16(shuffle_bytes(x, lower), _mm256_shuffle_epi32(below, r * 0x55)));
        return _mm256_srai_epi32(sum, kTapShift);
    }
    static HOTLOOP_INLINE Mixed<Avx2> sample(const uint8_t* taps, I above, I below) {
        return {{_mm256_packs_epi32(weighed<0>(taps, above, below), weighed<1>(taps, above, below))},
                {_mm256_packs_epi32(weighed<2>(taps, above, below), weighed<3>(taps, above, below))}};
    }
    static HOTLOOP_INLINE Mixed<Avx2> scale(Mixed<Avx2> m, I factor) {
        return {{_mm256_mulhrs_epi16(m.p.x, _mm256_shuffle_epi32(factor, 0x50))},
                {_mm256_mulhrs_epi16(m.q.x, _mm256_shuffle_epi32(factor, 0xfa))}};
    }
    static HOTLOOP_INLINE B add(B a, B b) { return {_mm256_adds_epi16(a.x, b.x)}; }
    static HOTLOOP_INLINE B sub(B a, B b) { return {_mm256_sub_epi16(a.x, b.x)}; }
    static HOTLOOP_INLINE Mixed<Avx2> words(I red_green, I blue_alpha) {
        return {{_mm256_unpacklo_epi32(red_green, blue_alpha)}, {_mm256_unpackhi_epi32(red_green, blue_alpha)}};
    }
    static HOTLOOP_INLINE void store(uint8_t* to, const Mixed<Avx2>& m) {
        const I half = _mm256_set1_epi16(64);
        const I p = _mm256_srai_epi16(_mm256_adds_epi16(m.p.x, half), 7);
        const I q = _mm256_srai_epi16(_mm256_adds_epi16(m.q.x, half), 7);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_packus_epi16(p, q));
    }
};
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
struct Avx512 {
    static constexpr int kLanes = 16;
    using V = __m512;
    using I = __m512i;
    struct B {
        __m512i x;
    };

    static HOTLOOP_INLINE V spread(float a) { return _mm512_set1_ps(a); }
    static HOTLOOP_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
    static HOTLOOP_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a); }
    static HOTLOOP_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
    static HOTLOOP_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static HOTLOOP_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static HOTLOOP_INLINE V min(V a, V b) { return _mm512_min_ps(a, b); }
    static HOTLOOP_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }
    static HOTLOOP_INLINE bool all_in(V a, V low, V high) {
        return (_mm512_cmp_ps_mask(a, low, _CMP_GE_OQ) & _mm512_cmp_ps_mask(a, high, _CMP_LE_OQ)) == 0xffff;
    }
    static HOTLOOP_INLINE bool any(V a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GT_OQ) != 0; }
    static HOTLOOP_INLINE I load(const int32_t* p) { return _mm512_loadu_si512(p); }
    static HOTLOOP_INLINE void store(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
    static HOTLOOP_INLINE I spread(int32_t a) { return _mm512_set1_epi32(a); }
    static HOTLOOP_INLINE I truncated(V a) { return _mm512_cvttps_epi32(a); }
    static HOTLOOP_INLINE I nearest(V a) { return _mm512_cvtps_epi32(a); }
    static HOTLOOP_INLINE V floats(I a) { return _mm512_cvtepi32_ps(a); }
    static HOTLOOP_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
    static HOTLOOP_INLINE I mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
    static HOTLOOP_INLINE I pair(I low, I high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }
    static HOTLOOP_INLINE void neighbours(const float* nodes, const int32_t* index, V& left, V& right) {
        const int32_t first = index[0];
        if (index[kLanes - 1] + 1 - first < kLanes) {
            const V near = load(nodes + first);
            const I at = _mm512_sub_epi32(load(index), spread(first));
            left = _mm512_permutexvar_ps(at, near);
            right = _mm512_permutexvar_ps(add(at, spread(1)), near);
        } else {
            left = _mm512_i32gather_ps(load(index), nodes, 4);
            right = _mm512_i32gather_ps(load(index), nodes + 1, 4);
        }
    }

    static HOTLOOP_INLINE void copy_pair(uint8_t* to, const uint8_t* above, const uint8_t* below) {
        store_pair(to, above, below);
    }
    static HOTLOOP_INLINE I in_every_lane(__m128i a) { return _mm512_broadcast_i32x4(a); }
    template <int r>
    static HOTLOOP_INLINE I weighed(const uint8_t* taps, I above, I below) {
        constexpr char o = -128;
        constexpr auto same = static_cast<_MM_PERM_ENUM>(r * 0x55);
        const I upper = in_every_lane(_mm_setr_epi8(0, o, 4, o, 1, o, 5, o, 2, o, 6, o, 3, o, 7, o));
        const I lower = in_every_lane(_mm_setr_epi8(8, o, 12, o, 9, o, 13, o, 10, o, 14, o, 11, o, 15, o));
        const I x = _mm512_loadu_si512(taps + r * 64);
        const I sum = add(_mm512_madd_epi16(_mm512_shuffle_epi8(x, upper), _mm512_shuffle_epi32(above, same)),
                          _mm512_madd_epi16(_mm512_shuffle_epi8(x, lower), _mm512_shuffle_epi32(below, same)));
        return _mm512_srai_epi32(sum, kTapShift);
    }
    static HOTLOOP_INLINE Mixed<Avx512> sample(const uint8_t* taps, I above, I below) {
        return {{_mm512_packs_epi32(weighed<0>(taps, above, below), weighed<1>(taps, above, below))},
                {_mm512_packs_epi32(weighed<2>(taps, above, below), weighed<3>(taps, above, below))}};
    }
    static HOTLOOP_INLINE Mixed<Avx512> scale(Mixed<Avx512> m, I factor) {
        return {{_mm512_mulhrs_epi16(m.p.x, _mm512_shuffle_epi32(factor, static_cast<_MM_PERM_ENUM>(0x50)))},
                {_mm512_mulhrs_epi16(m.q.x, _mm512_shuffle_epi32(factor, static_cast<_MM_PERM_ENUM>(0xfa)))}};
    }
    static HOTLOOP_INLINE B add(B a, B b) { return {_mm512_adds_epi16(a.x, b.x)}; }
    static HOTLOOP_INLINE B sub(B a, B b) { return {_mm512_sub_epi16(a.x, b.x)}; }
    static HOTLOOP_INLINE Mixed<Avx512> words(I red_green, I blue_alpha) {
        return {{_mm512_unpacklo_epi32(red_green, blue_alpha)}, {_mm512_unpackhi_epi32(red_green, blue_alpha)}};
    }
    static HOTLOOP_INLINE void store(uint8_t* to, const Mixed<Avx512>& m) {
        const I half = _mm512_set1_epi16(64);
        const I p = _mm512_srai_epi16(_mm512_adds_epi16(m.p.x, half), 7);
        const I q = _mm512_srai_epi16(_mm512_adds_epi16(m.q.x, half), 7);
        _mm512_storeu_si512(to, _mm512_packus_epi16(p, q));
    }
};
#endif

}  // namespace
}  // namespace hotloop
