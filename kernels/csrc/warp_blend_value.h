// One pixel through warp_blend: what the CPU's lanes and a CUDA thread share, so that both give the same bytes.
//
// Floats say where a pixel comes from, each operation rounded by itself. Pixels are mixed in whole numbers: taps weigh
// 1/16384, masks and alpha 1/32768, and what is in the making counts 1/128 of a byte's level.
#pragma once

#include <cstdint>

#include "exact.h"
#include "ops.h"

namespace hotloop {

constexpr float kFarthest = 16.0f;      // pictures: a flow beyond it, and NaN, is as far
constexpr float kLeast = 1.0f / 2048;   // a mask or colour below it, and NaN, is nothing
constexpr float kMaskUnit = 32767.0f;   // a mask or alpha of 1 as a factor
constexpr float kLevels = 255 * 128;    // a colour of 1
constexpr float kTapUnit = 16384.0f;    // the weights of four taps together
constexpr int kTapShift = 7;            // from there to 1/128 of a level

// a + t (b - a)
HOTLOOP_HD HOTLOOP_INLINE float between(float a, float b, float t) { return plus(a, times(t, plus(b, -a))); }

// To the nearest whole number, half to even, below 2^22.
HOTLOOP_HD HOTLOOP_INLINE int rounded(float v) {
    constexpr float kRound = 12582912.0f;  // 1.5 2^23
    return static_cast<int>(plus(plus(v, kRound), -kRound));
}

// value factor / 32768, rounded.
HOTLOOP_HD HOTLOOP_INLINE int scaled(int value, int factor) { return (value * factor + (1 << 14)) >> 15; }

// Where the centre of pixel o of `out` lies among `in` pixels: (o + 1/2) in / out - 1/2. Sizes up to 16,384.
HOTLOOP_HD HOTLOOP_INLINE float centre(int o, int in, int out) {
    return static_cast<float>((2 * o + 1) * in - out) / static_cast<float>(2 * out);
}

// --- Layers ---

// The channels of a field: flows x and y of every source, masks of all but the first, colour if there is one.
HOTLOOP_HD HOTLOOP_INLINE int mask_channel(int sources, int s) { return 2 * sources + s - 1; }
HOTLOOP_HD HOTLOOP_INLINE int colour_channel(int sources) { return 3 * sources - 1; }

// A node's value as it is interpolated: flows in a source's pixels, masks and colours in their units.
HOTLOOP_HD HOTLOOP_INLINE float flow_of(float v, float size) {
    v = v > -kFarthest ? v : -kFarthest;
    v = v < kFarthest ? v : kFarthest;
    return times(v, size);
}
HOTLOOP_HD HOTLOOP_INLINE float share_of(float v, float unit) {
    v = v >= kLeast ? v : 0.0f;
    v = v < 1.0f ? v : 1.0f;
    return times(v, unit);
}

// An axis of a layer: the pixels whose centres its box covers, and where on its grid they lie.
struct Span {
    int first, end, nodes;
    float scale, offset;  // pixel first + i is at i scale + offset, in nodes

    HOTLOOP_HD bool has(int pixel) const { return pixel >= first && pixel < end; }
};

// Of a box from low to high, in pictures.
HOTLOOP_INLINE Span span_of(double low, double high, int pixels, int nodes) {
    const auto edge = [=](double at) {  // the first pixel whose centre is not before it
        const double place = at * pixels - 0.5;
        const int whole = place < 0 ? 0 : place > pixels ? pixels : static_cast<int>(place);
        return whole < place ? whole + 1 : whole;
    };
    Span span{edge(low), edge(high), nodes, 0.0f, 0.0f};
    if (span.end > pixels) span.end = pixels;
    if (span.end <= span.first) return {0, 0, nodes, 0.0f, 0.0f};
    const double scale = nodes / (pixels * (high - low));
    span.scale = static_cast<float>(scale < 1e9 ? scale : 1e9);  // one pixel in a box as narrow as that
    span.offset = static_cast<float>(((span.first + 0.5) / pixels - low) / (high - low) * nodes - 0.5);
    return span;
}

// A pixel's neighbours on the grid, beyond an edge the edge, and how far it is from the lower one.
struct Node {
    int low, high;
    float beyond;
};

HOTLOOP_HD HOTLOOP_INLINE Node node_at(const Span& span, int pixel) {
    float at = plus(times(static_cast<float>(pixel - span.first), span.scale), span.offset);
    const float last = static_cast<float>(span.nodes - 1);
    at = at > 0.0f ? at : 0.0f;
    at = at < last ? at : last;
    const int low = static_cast<int>(at);
    return {low, low + 1 < span.nodes ? low + 1 : low, plus(at, -static_cast<float>(low))};
}

struct Place {
    Span x, y;
};

HOTLOOP_INLINE void places_of(const WarpBlend& op, Place* places) {
    const int height = static_cast<int>(op.out.shape[0]), width = static_cast<int>(op.out.shape[1]);
    for (int l = 0; l < op.layers; ++l) {
        const double* box = op.layer[l].box;
        const Tensor& field = op.layer[l].field;
        places[l].x = span_of(box[0], box[2], width, static_cast<int>(field.shape[2]));
        places[l].y = span_of(box[1], box[3], height, static_cast<int>(field.shape[1]));
    }
}

// --- Taps ---

// Linear between pixels `at` and at + 1 of an axis; outside weighs nothing.
struct Tap {
    int at;
    float first, second;
};

HOTLOOP_HD HOTLOOP_INLINE Tap tap_at(float place, int size) {
    const float most = static_cast<float>(size - 2);
    float low = place > 0.0f ? place : 0.0f;
    low = low < most ? low : most;
    const int at = static_cast<int>(low);
    const float d = plus(place, -static_cast<float>(at));
    const float down = plus(1.0f, -d), up = plus(1.0f, d), rest = plus(2.0f, -d);
    const float first = down < up ? down : up, second = d < rest ? d : rest;
    return {at, first > 0.0f ? first : 0.0f, second > 0.0f ? second : 0.0f};
}

// One pixel of the result.
HOTLOOP_HD inline void blend_pixel(const WarpBlend& op, const Place* places, int x, int y) {
    const int height = static_cast<int>(op.out.shape[0]), width = static_cast<int>(op.out.shape[1]);
    int l = op.layers - 1;
    while (l > 0 && !(places[l].x.has(x) && places[l].y.has(y))) --l;
    const Tensor& field = op.layer[l].field;
    const Node across = node_at(places[l].x, x), down = node_at(places[l].y, y);
    const float* nodes = static_cast<const float*>(field.data);
    const auto value = [&](int channel, auto of, float unit) {
        const float* low = nodes + channel * field.stride[0] + down.low * field.stride[1];
        const float* high = nodes + channel * field.stride[0] + down.high * field.stride[1];
        const int64_t left = across.low * field.stride[2], right = across.high * field.stride[2];
        return between(between(of(low[left], unit), of(low[right], unit), across.beyond),
                       between(of(high[left], unit), of(high[right], unit), across.beyond), down.beyond);
    };
    const auto flow = [](float v, float unit) { return flow_of(v, unit); };
    const auto share = [](float v, float unit) { return share_of(v, unit); };

    int mixed[4] = {};
    for (int s = 0; s < op.sources; ++s) {
        const Tensor& source = op.source[s];
        const int rows = static_cast<int>(source.shape[0]), columns = static_cast<int>(source.shape[1]);
        const Tap tx = tap_at(
            plus(value(2 * s, flow, static_cast<float>(columns)), centre(x, columns, width)), columns);
        const Tap ty = tap_at(
            plus(value(2 * s + 1, flow, static_cast<float>(rows)), centre(y, rows, height)), rows);
        const int mask = s == 0 ? 0 : rounded(value(mask_channel(op.sources, s), share, kMaskUnit));
        for (int c = 0; c < 4; ++c) {
            int sum = 0;
            for (int tap = 0; tap < 4; ++tap) {
                const int i = tx.at + tap % 2, j = ty.at + tap / 2;
                if (i < 0 || j < 0 || i >= columns || j >= rows) continue;
                const float along = times(tap % 2 ? tx.second : tx.first, kTapUnit);
                const int weight = rounded(times(along, tap / 2 ? ty.second : ty.first));
                sum += weight * static_cast<const uint8_t*>(source.data)[j * source.stride[0] + i * source.stride[1] +
                                                                         c * source.stride[2]];
            }
            const int taken = sum >> kTapShift;
            mixed[c] = s == 0 ? taken : mixed[c] + scaled(taken - mixed[c], mask);
        }
    }
    const int colour = colour_channel(op.sources);
    const bool coloured = colour < field.shape[0];
    const int alpha = coloured ? rounded(times(value(colour + 3, share, kLevels), kMaskUnit / kLevels)) : 0;
    uint8_t* to = static_cast<uint8_t*>(op.out.data) + y * op.out.stride[0] + x * op.out.stride[1];
    for (int c = 0; c < 4; ++c) {
        if (coloured) mixed[c] += rounded(value(colour + c, share, kLevels)) - scaled(mixed[c], alpha);
        const int level = (mixed[c] + 64) >> 7;
        to[c * op.out.stride[2]] = static_cast<uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
    }
}

}  // namespace hotloop
