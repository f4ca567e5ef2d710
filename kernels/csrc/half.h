// float16 and bfloat16 as bits, and their exact conversions: to float without loss, back rounded to nearest even.
//
// Branch-free, so that loops over them vectorise on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace hotloop {

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};

HOTLOOP_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
HOTLOOP_INLINE float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

HOTLOOP_INLINE float to_float(float value) { return value; }

HOTLOOP_INLINE float to_float(Bfloat value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

// The exponent is moved by a product with 2^112, which also normalises a subnormal.
HOTLOOP_INLINE float to_float(Half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
    const uint32_t finite = bits_of(float_of(magnitude) * float_of((127u + 112u) << 23));
    const uint32_t special = magnitude | 0x7f800000u;  // infinity or NaN
    return float_of(sign | (magnitude >= 0x0f800000u ? special : finite));
}

template <class T>
HOTLOOP_INLINE T from_float(float value);

template <>
HOTLOOP_INLINE float from_float<float>(float value) {
    return value;
}

template <>
HOTLOOP_INLINE Bfloat from_float<Bfloat>(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const uint32_t nan = bits | 0x400000u;  // quiet: truncation alone could leave an infinity
    return {static_cast<uint16_t>(((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded) >> 16)};
}

template <>
HOTLOOP_INLINE Half from_float<Half>(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal: exponent moved, the 13 bits that go rounded to even; a carry into the exponent is right, up to infinity.
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal: the sum with 0.5 has an ulp of 2^-24, so the processor rounds to a multiple of it.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    return {static_cast<uint16_t>(sign | (magnitude >= (143u << 23) ? special : finite))};
}

}  // namespace hotloop
