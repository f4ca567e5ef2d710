// warp_blend's body for one instruction set: rows of the result, one after another.
//
// A layer's grid is spread over the columns of its box two grid rows at a time, and serves all rows of pixels between
// them. Of a row, what shows of each layer goes by tiles of kTile pixels in three passes: where the taps lie and what
// they weigh; the taps themselves, two plain loads of 64 bits a pixel and source, which wait for no vector; the mixing.
// What no pixel of a group needs is left out: a source under a mask of 0, a colour of 0, the care for edges.
#pragma once

#include <cstdint>
#include <cstring>

#include "warp_blend_kernel.h"
#include "warp_blend_lanes.h"
#include "warp_blend_value.h"

namespace hotloop {
namespace {

template <class L>
class WarpBlendRows {
  public:
    static constexpr WarpBlendKernel table() { return {&scratch_of, &run}; }

  private:
    using V = typename L::V;
    using I = typename L::I;
    static constexpr int N = L::kLanes;
    static constexpr int kTile = 64;    // pixels
    // Rows that are brought into the cache before they are needed, of a source and of the result.
    static constexpr int kAhead = 12, kWriteAhead = 2;
    static constexpr float kMargin = 1.0f / 64;  // pixels, more than floats can err: inside by so much is inside

    // What a group of pixels needs; bit s for source s.
    struct Needs {
        uint8_t source;  // it shows
        uint8_t inside;  // all of its taps lie in the picture
        uint8_t colour;
        uint8_t unused;
    };
    static_assert(sizeof(Needs) == sizeof(float), "counted in floats");

    struct Layer {
        Place place;
        int groups;           // of pixels over the box's width
        int grid_row[2];      // of the rows below; -1: none
        const int32_t* low;   // [groups N] the left node of a pixel
        const float* beyond;  // [groups N]
        float* row[2];        // [C][groups N]
        Needs* needs;         // [groups]
    };

    static int channels(const WarpBlend& op) { return static_cast<int>(op.layer[0].field.shape[0]); }
    static int groups(const Span& span) { return (span.end - span.first + N - 1) / N; }
    static int64_t most_nodes(const WarpBlend& op) {
        int64_t most = 0;
        for (int l = 0; l < op.layers; ++l) most = op.layer[l].field.shape[2] > most ? op.layer[l].field.shape[2] : most;
        return most + N;
    }

    static int64_t scratch_of(const WarpBlend& op) {
        Place places[kMaxLayers];
        places_of(op, places);
        int64_t count = op.sources * (op.out.shape[1] + N) + most_nodes(op);
        for (int l = 0; l < op.layers; ++l)
            count += groups(places[l].x) * (N * (2 + 2 * static_cast<int64_t>(channels(op))) + 1);
        return count;
    }

    static void run(const WarpBlend& op, int first, int end, float* scratch) {
        WarpBlendRows(op, end, scratch).rows(first);
    }

    WarpBlendRows(const WarpBlend& op, int end, float* scratch) : op_(op), end_(end) {
        const auto take = [&](int64_t count) {
            float* const taken = scratch;
            scratch += count;
            return taken;
        };
        Place places[kMaxLayers];
        places_of(op, places);
        width_ = static_cast<int>(op.out.shape[1]);
        for (int s = 0; s < op.sources; ++s) {
            float* column = take(width_ + N);
            for (int x = 0; x < width_ + N; ++x)
                column[x] = centre(x < width_ ? x : width_ - 1, static_cast<int>(op.source[s].shape[1]), width_);
            column_[s] = column;
        }
        nodes_ = take(most_nodes(op));
        for (int l = 0; l < op.layers; ++l) {
            Layer& layer = layer_[l];
            layer.place = places[l];
            const Span& span = layer.place.x;
            layer.groups = groups(span);
            layer.grid_row[0] = layer.grid_row[1] = -1;
            const int64_t columns = layer.groups * N;
            auto* low = reinterpret_cast<int32_t*>(take(columns));
            float* beyond = take(columns);
            for (int i = 0; i < columns; ++i) {
                const int x = span.first + i;
                const Node node = node_at(span, x < span.end ? x : span.end - 1);
                low[i] = node.low;
                beyond[i] = node.beyond;
            }
            layer.low = low;
            layer.beyond = beyond;
            for (float*& row : layer.row) row = take(channels(op) * columns);
            layer.needs = reinterpret_cast<Needs*>(take(layer.groups));
        }
    }

    void rows(int first) {
        for (int y = first; y < end_; ++y) {
            for (int x = 0; x < width_;) {
                int l = op_.layers - 1, until = width_;
                for (; l > 0; --l) {
                    const Place& place = layer_[l].place;
                    if (!place.y.has(y)) continue;
                    if (place.x.has(x)) break;
                    if (place.x.first > x && place.x.first < until) until = place.x.first;
                }
                if (layer_[l].place.x.end < until) until = layer_[l].place.x.end;
                draw(layer_[l], l, y, x, until);
                x = until;
            }
        }
    }

    // --- The grid ---

    // A grid row, spread over the box's columns.
    void spread(Layer& layer, int l, int slot, int grid_row) {
        layer.grid_row[slot] = grid_row;
        const Tensor& field = op_.layer[l].field;
        const int count = layer.place.x.nodes, colour = colour_channel(op_.sources);
        for (int c = 0; c < channels(op_); ++c) {
            const float* from = static_cast<const float*>(field.data) + c * field.stride[0] + grid_row * field.stride[1];
            for (int i = 0; i < count; ++i) nodes_[i] = from[i * field.stride[2]];
            if (c < 2 * op_.sources) {
                const auto size = static_cast<float>(op_.source[c / 2].shape[1 - c % 2]);
                for (int i = 0; i < count; ++i) nodes_[i] = flow_of(nodes_[i], size);
            } else {
                const float unit = c < colour ? kMaskUnit : kLevels;
                for (int i = 0; i < count; ++i) nodes_[i] = share_of(nodes_[i], unit);
            }
            for (int i = 0; i < N; ++i) nodes_[count + i] = nodes_[count - 1];
            float* to = layer.row[slot] + static_cast<int64_t>(c) * layer.groups * N;
            for (int i = 0; i < layer.groups * N; i += N) {
                V left, right;
                L::neighbours(nodes_, layer.low + i, left, right);
                L::store(to + i, L::add(left, L::mul(L::load(layer.beyond + i), L::sub(right, left))));
            }
        }
    }

    // The grid rows of a row of pixels, and what their groups need down to the last row that lies between them.
    void hold(Layer& layer, int l, const Node& node, int y) {
        if (layer.grid_row[0] == node.low && layer.grid_row[1] == node.high) return;
        if (layer.grid_row[0] != node.low) {
            if (layer.grid_row[1] == node.low) {
                float* const last = layer.row[0];
                layer.row[0] = layer.row[1];
                layer.row[1] = last;
                layer.grid_row[0] = node.low;
                layer.grid_row[1] = -1;
            } else {
                spread(layer, l, 0, node.low);
            }
        }
        if (layer.grid_row[1] != node.high) spread(layer, l, 1, node.high);
        int last = y;
        while (last + 1 < end_ && layer.place.y.has(last + 1) && node_at(layer.place.y, last + 1).low == node.low) ++last;
        for (int g = 0; g < layer.groups; ++g) layer.needs[g] = needs(layer, g, y, last);
    }

    Needs needs(const Layer& layer, int g, int first, int last) const {
        const int height = static_cast<int>(op_.out.shape[0]);
        const auto some = [&](int channel) { return L::any(L::max(row(layer, 0, channel, g), row(layer, 1, channel, g))); };
        Needs needs{1, 0, 0, 0};
        for (int s = 0; s < op_.sources; ++s) {
            if (s > 0) needs.source |= static_cast<uint8_t>(some(mask_channel(op_.sources, s)) << s);
            const int w = static_cast<int>(op_.source[s].shape[1]), h = static_cast<int>(op_.source[s].shape[0]);
            const V x0 = row(layer, 0, 2 * s, g), x1 = row(layer, 1, 2 * s, g);
            const V y0 = row(layer, 0, 2 * s + 1, g), y1 = row(layer, 1, 2 * s + 1, g);
            const V column = L::load(column_[s] + layer.place.x.first + g * N);
            const V top = L::spread(centre(first, h, height)), bottom = L::spread(centre(last, h, height));
            const V low = L::spread(kMargin), right = L::spread(static_cast<float>(w - 1) - kMargin);
            const V floor = L::spread(static_cast<float>(h - 1) - kMargin);
            const bool inside = L::all_in(L::add(L::min(x0, x1), column), low, right) &&
                                L::all_in(L::add(L::max(x0, x1), column), low, right) &&
                                L::all_in(L::add(L::min(y0, y1), top), low, floor) &&
                                L::all_in(L::add(L::max(y0, y1), bottom), low, floor);
            needs.inside |= static_cast<uint8_t>(inside << s);
        }
        for (int c = colour_channel(op_.sources); c < channels(op_); ++c) needs.colour |= some(c);
        return needs;
    }

    HOTLOOP_INLINE V row(const Layer& layer, int slot, int channel, int g) const {
        return L::load(layer.row[slot] + (static_cast<int64_t>(channel) * layer.groups + g) * N);
    }

    // --- Pixels ---

    struct Taps {
        int32_t offset[kMaxSources][kTile];  // bytes from the source's start to the upper left one
        int32_t above[kMaxSources][kTile], below[kMaxSources][kTile];  // pairs of weights
        alignas(64) uint8_t bytes[kMaxSources][kTile * 16];
    };

    // Pixels from..until of row y.
    void draw(Layer& layer, int l, int y, int from, int until) {
        const Node node = node_at(layer.place.y, y);
        hold(layer, l, node, y);
        const V beyond = L::spread(node.beyond);
        uint8_t* const to = static_cast<uint8_t*>(op_.out.data) + y * op_.out.stride[0];
        const int end = (until - layer.place.x.first + N - 1) / N;
        Taps taps;
        for (int tile = (from - layer.place.x.first) / N; tile < end; tile += kTile / N) {
            const int stop = tile + kTile / N < end ? tile + kTile / N : end;
            for (int s = 0; s < op_.sources; ++s) {
                locate(layer, s, y, beyond, tile, stop, taps);
                fetch(layer, s, to + 4 * static_cast<int64_t>(layer.place.x.first), tile, stop, taps);
            }
            for (int g = tile; g < stop; ++g) {
                const Mixed<L> mixed = mix(layer, g, (g - tile) * N, beyond, taps);
                const int x = layer.place.x.first + g * N;
                if (x >= from && x + N <= until) {
                    L::store(to + 4 * static_cast<int64_t>(x), mixed);
                } else {
                    uint8_t whole[4 * N];
                    L::store(whole, mixed);
                    const int left = x < from ? from : x, right = x + N < until ? x + N : until;
                    std::memcpy(to + 4 * static_cast<int64_t>(left), whole + 4 * (left - x), 4 * (right - left));
                }
            }
        }
    }

    static HOTLOOP_INLINE V between(V a, V b, V t) { return L::add(a, L::mul(t, L::sub(b, a))); }

    // As tap_at in warp_blend_value.h.
    static HOTLOOP_INLINE I tap(V at, int size, bool inside, V& first, V& second) {
        const V one = L::spread(1.0f);
        if (inside) {
            const I whole = L::truncated(at);
            second = L::sub(at, L::floats(whole));
            first = L::sub(one, second);
            return whole;
        }
        const V none = L::spread(0.0f);
        const I whole = L::truncated(L::min(L::max(at, none), L::spread(static_cast<float>(size - 2))));
        const V d = L::sub(at, L::floats(whole));
        first = L::max(L::min(L::sub(one, d), L::add(one, d)), none);
        second = L::max(L::min(d, L::sub(L::spread(2.0f), d)), none);
        return whole;
    }

    HOTLOOP_INLINE void locate(const Layer& layer, int s, int y, V beyond, int tile, int stop, Taps& taps) const {
        const Tensor& source = op_.source[s];
        const int w = static_cast<int>(source.shape[1]), h = static_cast<int>(source.shape[0]);
        const V line = L::spread(centre(y, h, static_cast<int>(op_.out.shape[0])));
        const I stride = L::spread(static_cast<int32_t>(source.stride[0]));
        for (int g = tile; g < stop; ++g) {
            if (!(layer.needs[g].source >> s & 1)) continue;
            const bool inside = layer.needs[g].inside >> s & 1;
            const V column = L::load(column_[s] + layer.place.x.first + g * N);
            const V at_x = L::add(between(row(layer, 0, 2 * s, g), row(layer, 1, 2 * s, g), beyond), column);
            const V at_y = L::add(between(row(layer, 0, 2 * s + 1, g), row(layer, 1, 2 * s + 1, g), beyond), line);
            V left, right, upper, lower;
            const I x = tap(at_x, w, inside, left, right), row = tap(at_y, h, inside, upper, lower);
            left = L::mul(left, L::spread(kTapUnit));
            right = L::mul(right, L::spread(kTapUnit));
            const int i = (g - tile) * N;
            L::store(taps.offset[s] + i, L::add(L::mul(row, stride), L::mul(x, L::spread(4))));
            L::store(taps.above[s] + i, L::pair(L::nearest(L::mul(left, upper)), L::nearest(L::mul(right, upper))));
            L::store(taps.below[s] + i, L::pair(L::nearest(L::mul(left, lower)), L::nearest(L::mul(right, lower))));
        }
    }

    HOTLOOP_INLINE void fetch(const Layer& layer, int s, const uint8_t* to, int tile, int stop, Taps& taps) const {
        const auto* data = static_cast<const uint8_t*>(op_.source[s].data);
        const int64_t stride = op_.source[s].stride[0];
        const uint8_t* const lower = data + stride;
        for (int g = tile; g < stop; ++g) {
            if (!(layer.needs[g].source >> s & 1)) continue;
            const int32_t* offset = taps.offset[s] + (g - tile) * N;
            uint8_t* const bytes = taps.bytes[s] + (g - tile) * N * 16;
            ahead<0>(data, offset[0] + kAhead * stride);
            if (s == 0) ahead<1>(to, kWriteAhead * op_.out.stride[0] + 4 * static_cast<int64_t>(g) * N);
#pragma GCC unroll 16
            for (int i = 0; i < N; ++i) L::copy_pair(bytes + 16 * place<L>(i), data + offset[i], lower + offset[i]);
        }
    }

    // Into the cache, to be read or written; an address beyond the picture does no harm.
    template <int write>
    static HOTLOOP_INLINE void ahead(const uint8_t* data, int64_t offset) {
#if defined(__GNUC__)
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(data) + offset), write);
#else
        static_cast<void>(data), static_cast<void>(offset);
#endif
    }

    HOTLOOP_INLINE Mixed<L> mix(const Layer& layer, int g, int i, V beyond, const Taps& taps) const {
        const auto value = [&](int channel) HOTLOOP_INLINE_LAMBDA {
            return between(row(layer, 0, channel, g), row(layer, 1, channel, g), beyond);
        };
        const auto sampled = [&](int s) HOTLOOP_INLINE_LAMBDA {
            return L::sample(taps.bytes[s] + 16 * i, L::load(taps.above[s] + i), L::load(taps.below[s] + i));
        };
        Mixed<L> mixed = sampled(0);
        for (int s = 1; s < op_.sources; ++s) {
            if (!(layer.needs[g].source >> s & 1)) continue;
            const Mixed<L> over = sampled(s);
            const I mask = L::nearest(value(mask_channel(op_.sources, s)));
            const Mixed<L> step = L::scale({L::sub(over.p, mixed.p), L::sub(over.q, mixed.q)}, L::pair(mask, mask));
            mixed = {L::add(mixed.p, step.p), L::add(mixed.q, step.q)};
        }
        if (layer.needs[g].colour) {
            const int c = colour_channel(op_.sources);
            const V alpha = value(c + 3);
            const I cover = L::nearest(L::mul(alpha, L::spread(kMaskUnit / kLevels)));
            const Mixed<L> under = L::scale(mixed, L::pair(cover, cover));
            const Mixed<L> colour = L::words(L::pair(L::nearest(value(c)), L::nearest(value(c + 1))),
                                             L::pair(L::nearest(value(c + 2)), L::nearest(alpha)));
            mixed = {L::add(L::sub(mixed.p, under.p), colour.p), L::add(L::sub(mixed.q, under.q), colour.q)};
        }
        return mixed;
    }

    const WarpBlend& op_;
    int end_, width_ = 0;
    const float* column_[kMaxSources] = {};  // [W + N] where the columns' centres lie in a source
    float* nodes_ = nullptr;
    Layer layer_[kMaxLayers];
};

}  // namespace
}  // namespace hotloop
