// Elementary functions in float32, branch-free: loops over them vectorise.
//
// The coefficients are minimax fits of the relative error, found by Lawson's reweighted least squares in float64.
#pragma once

#include <cmath>
#include <limits>

#include "half.h"

namespace hotloop {

// 2^n e^r for x = n ln 2 + r: e^r to 3e-9, ln 2 in two parts, n 355/512 being exact. `tail`, where it is given, is added
// to x where it no longer fits beside it. e^-87 below -87, infinity above 88.
template <class... Tail>
HOTLOOP_INLINE float exponential_from_87(float x, Tail... tail) {
    constexpr float kRound = 12582912.0f;  // 1.5 2^23: adding it rounds to a whole number, kept in the low bits
    const float low = x < 88.0f ? x : 88.0f;
    const float within = low > -87.0f ? low : -87.0f;
    const float shifted = within * 1.44269504f + kRound;
    const float n = shifted - kRound;
    const float r = (((within - n * 0.693359375f) + n * 2.12194440e-4f) + ... + tail);
    float p = 1.38145381e-3f;
    p = p * r + 8.36874554e-3f;
    p = p * r + 4.16683908e-2f;
    p = p * r + 1.66665204e-1f;
    p = p * r + 4.99999934e-1f;
    p = p * (r * r) + r + 1.0f;
    const float value = float_of(bits_of(p) + (bits_of(shifted) << 23));  // p 2^n: no exponent leaves the normal ones
    return x > 88.0f ? std::numeric_limits<float>::infinity() : value;
}

// 0 below -87.
template <class... Tail>
HOTLOOP_INLINE float exponential(float x, Tail... tail) {
    const float value = exponential_from_87(x, tail...);
    return x < -87.0f ? 0.0f : value;
}

// x sigmoid(x). Beside 1, e^-87 is 0.
HOTLOOP_INLINE float silu(float x) { return x / (1.0f + exponential_from_87(-x)); }

// x Phi(x), the exact GELU (Hendrycks & Gimpel 2016): x (1 + erf(x / sqrt 2)) / 2. Within 2 ulp from 0 on, 5 below.
//
// Near 0: Phi(x) = 1/2 + x S(x x). Beyond 1, by the tail Q(t) = erfc(t / sqrt 2) / 2 = e^(-t t / 2) P(y) / (t + a), with
// t = |x| and y = (t - a) / (t + a): so a negative x keeps its digits, where 1 + erf has lost all of them by -5.6.
HOTLOOP_INLINE float gelu(float x) {
    constexpr float a = 2.5f;
    const float magnitude = float_of(bits_of(x) & 0x7fffffffu);
    const float t = magnitude < 13.25f ? magnitude : 13.25f;
    const float w = 1.0f / (t + a);
    const float y = (t - a) * w;
    float p = -1.55935399e-4f;
    p = p * y - 3.08500224e-4f;
    p = p * y + 6.84235885e-4f;
    p = p * y + 2.52138777e-3f;
    p = p * y - 1.60140684e-3f;
    p = p * y - 1.63855460e-2f;
    p = p * y + 9.23603866e-3f;
    p = p * y + 1.31986931e-1f;
    p = p * y - 4.33692008e-1f;
    p = p * y + 7.06656635e-1f;
    // t t = head head + (t - head) (t + head): the first product is exact.
    const float head = float_of(bits_of(t) & 0xfffff000u);
    const float tail = p * w * exponential(-0.5f * (head * head), -0.5f * ((t - head) * (t + head)));
    const float far = x < 0.0f ? tail : 1.0f - tail;

    const float square = t * t;
    float s = -7.55669225e-6f;
    s = s * square + 1.13217531e-4f;
    s = s * square - 1.18606037e-3f;
    s = s * square + 9.97320469e-3f;
    s = s * square - 6.64903373e-2f;
    s = s * square + 3.98942292e-1f;
    const float near = 0.5f + x * s;
    return x * (t < 1.0f ? near : far);
}

}  // namespace hotloop
