// One value through rgb: what the CPU's loops and a CUDA thread share, so that both give the same bits.
#pragma once

#include <cfloat>
#include <cstdint>

#include "exact.h"
#include "ops.h"

namespace hotloop {

HOTLOOP_HD HOTLOOP_INLINE bool is_finite(float x) { return (x < 0.0f ? -x : x) <= FLT_MAX; }

// [-1, 1] -> 0..255, rounded half to even: adding and taking away 1.5 2^23 does it on every instruction set.
HOTLOOP_HD HOTLOOP_INLINE uint8_t byte_of(float x) {
    constexpr float kRound = 12582912.0f;
    float v = plus(times(x, 0.5f), 0.5f);
    v = v > 0.0f ? v : 0.0f;
    v = v < 1.0f ? v : 1.0f;
    return static_cast<uint8_t>(static_cast<int>(plus(plus(times(v, 255.0f), kRound), -kRound)));
}

// 0..255, between bytes after a resize -> [-1, 1].
HOTLOOP_HD HOTLOOP_INLINE float unit_of(float v) { return plus(times(v / 255.0f, 2.0f), -1.0f); }

// Resampling along an axis: output o is a weighted sum of `count(o)` inputs from `first(o)` on. All in whole numbers
// up to the weight's one division; 32 bits hold them for sizes up to 16,384.
struct Axis {
    int in, out;
    bool area;  // the mean over the input that an output covers; else linear between the two nearest centres

    HOTLOOP_HD Axis(int in, int out, Filter filter)
        : in(in), out(out), area(filter == Filter::area || (filter == Filter::fit && out < in)) {}

    HOTLOOP_HD int first(int o) const {
        if (area) return o * in / out;
        const int numerator = (2 * o + 1) * in - out;  // of the centre's place, (o + 1/2) in / out - 1/2, over 2 out
        return numerator < 0 ? -1 : numerator / (2 * out);
    }
    HOTLOOP_HD int count(int o) const {
        return area ? ((o + 1) * in + out - 1) / out - o * in / out : 2;
    }
    // The input of a tap; beyond an edge, the edge.
    HOTLOOP_HD int index(int o, int tap) const {
        const int i = first(o) + tap;
        return i < 0 ? 0 : i < in ? i : in - 1;
    }
    HOTLOOP_HD float weight(int o, int tap) const {
        if (area) {
            const int i = first(o) + tap;
            const int begin = o * in > i * out ? o * in : i * out;
            const int end = (o + 1) * in < (i + 1) * out ? (o + 1) * in : (i + 1) * out;
            return static_cast<float>(end - begin) / static_cast<float>(in);
        }
        const int beyond = (2 * o + 1) * in - out - first(o) * 2 * out;  // of 2 out
        return static_cast<float>(tap == 0 ? 2 * out - beyond : beyond) / static_cast<float>(2 * out);
    }
};

// Of the picture's axis 1 (y) or 2 (x).
HOTLOOP_HD inline Axis axis_of(const RgbUnpack& op, int axis) {
    return {static_cast<int>(op.in.shape[axis]), static_cast<int>(op.out.shape[axis + 1]), op.filter};
}

// Value [n, c, y, x] of the result: along x first, then along y.
HOTLOOP_HD inline float resized_value(const RgbUnpack& op, int64_t n, int64_t c, int y, int x) {
    const Axis down = axis_of(op, 1), across = axis_of(op, 2);
    const uint8_t* image = static_cast<const uint8_t*>(op.in.data) + n * op.in.stride[0] + c * op.in.stride[3];
    float sum = 0.0f;
    for (int j = 0; j < down.count(y); ++j) {
        const uint8_t* line = image + down.index(y, j) * op.in.stride[1];
        float row = 0.0f;
        for (int i = 0; i < across.count(x); ++i)
            row = plus(row, times(across.weight(x, i), static_cast<float>(line[across.index(x, i) * op.in.stride[2]])));
        sum = plus(sum, times(down.weight(y, j), row));
    }
    return unit_of(sum);
}

}  // namespace hotloop
