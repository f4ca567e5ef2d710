// attention in float32: the body of the kernel.
//
// What:    as attention_mma.h, on the FMA pipe. Tensor cores would need three tf32 products for one float32 product and
//          still round the last bits; float32 is asked for where exactness is the point, so plain FMA it is.
// Layout:  a warp owns four query rows; while scores are computed a lane is a key, while values are, a column.
// Limit:   shared memory reads: five of 16 bytes per 16 FMAs a lane.
// Order:   columns in four sums by their number modulo four, keys in order.
#pragma once

#include <cstdint>

#include "attention_cuda.h"
#include "attention_mma.h"  // mask_value, offset_of
#include "machine.h"

namespace hotloop::attention_kernels {

template <class S>
struct FfmaAttention {
    static constexpr int kRows = S::kRowsPerWarp;

    const Params& p;
    const int lane, row;  // row: this warp's first, in the block
    const int head, batch, first;
    const uint32_t q_tile, tile_at;

    float o[kRows][S::kOutPerLane];
    float m[kRows], l[kRows];

    HOTLOOP_DEVICE FfmaAttention(const Params& params, uint32_t shared)
        : p(params),
          lane(machine::thread() & 31),
          row(machine::thread() / 32 * kRows),
          head(machine::block_y()),
          batch(machine::block_z()),
          first(machine::block_x() * S::kRows),
          q_tile(shared),
          tile_at(shared + S::kRows * S::kHeadSize * 4) {}

    HOTLOOP_DEVICE const float* start(const View& view) const {
        return reinterpret_cast<const float*>(view.data) + batch * view.batch + head * view.head;
    }

    template <int kCount, int kStride>
    HOTLOOP_DEVICE void load(uint32_t tile, const View& view, int from, int end) const {
        const float* base = start(view);
        constexpr int kChunks = S::kHeadSize / 4;
        for (int i = machine::thread(); i < kCount * kChunks; i += S::kThreads) {
            const int r = i / kChunks, column = i % kChunks * 4;
            machine::Floats values{};
            if (from + r < end && column < p.head_size) {
                const float* source = base + (from + r) * view.token + column;
                if (p.wide_loads)
                    values = *reinterpret_cast<const machine::Floats*>(source);
                else
                    for (int k = 0; k < 4; ++k) values.value[k] = source[k];
            }
            machine::shared_store(tile + (r * kStride + column) * 4, values);
        }
    }

    HOTLOOP_DEVICE void load_keys(const View& view, int tile, int keys) const {
        machine::sync();
        load<S::kTileKeys, S::kTileRow>(tile_at, view, tile * S::kTileKeys, keys);
        machine::sync();
    }

    // Of the key that this lane is; in natural units, with an exact exp: this is the kernel for exactness.
    HOTLOOP_DEVICE void scores(float (&s)[kRows], int tile, int keys, bool masked) const {
        float part[kRows][4] = {};  // four short sums round less than one long one
        for (int column = 0; column < p.head_size; column += 4) {
            const auto k = machine::shared_load<machine::Floats>(tile_at + (lane * S::kTileRow + column) * 4);
            HOTLOOP_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const auto q = machine::shared_load<machine::Floats>(q_tile + ((row + r) * S::kHeadSize + column) * 4);
                HOTLOOP_UNROLL
                for (int i = 0; i < 4; ++i) part[r][i] = fmaf(q.value[i], k.value[i], part[r][i]);
            }
        }
        const int key = tile * S::kTileKeys + lane;
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const int query = first + row + r;
            s[r] = ((part[r][0] + part[r][1]) + (part[r][2] + part[r][3])) * p.scale;
            if (key >= keys)
                s[r] = -infinity();
            else if (masked && query < p.queries)
                s[r] += mask_value(
                    p.mask, batch * p.mask.batch + head * p.mask.head + query * p.mask.query + key * p.mask.key, 1.0f);
        }
    }

    HOTLOOP_DEVICE static float warp_max(float value) {
        for (int i = 16; i > 0; i /= 2) value = fmaxf(value, machine::shuffle_xor(value, i));
        return value;
    }
    HOTLOOP_DEVICE static float warp_sum(float value) {
        for (int i = 16; i > 0; i /= 2) value += machine::shuffle_xor(value, i);
        return value;
    }

    // s becomes the probabilities; returns by how much to rescale what was summed before.
    HOTLOOP_DEVICE float update(float& s, int r) {
        const float top = fmaxf(m[r], warp_max(s));
        const float offset = offset_of(top);
        const float rescale = machine::exp(m[r] - offset);
        s = machine::exp(s - offset);
        l[r] = l[r] * rescale + warp_sum(s);
        m[r] = top;
        return rescale;
    }

    // P V of one tile, in sums of its own: many small terms would drown in a large o.
    HOTLOOP_DEVICE void multiply_values(float (&sum)[kRows][S::kOutPerLane], const float (&s)[kRows]) const {
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HOTLOOP_UNROLL
            for (int i = 0; i < S::kOutPerLane; ++i) sum[r][i] = 0.0f;
        }
        HOTLOOP_NO_UNROLL
        for (int key = 0; key < S::kTileKeys; ++key) {
            float weight[kRows];
            HOTLOOP_UNROLL
            for (int r = 0; r < kRows; ++r) weight[r] = machine::shuffle(s[r], key);
            HOTLOOP_UNROLL
            for (int i = 0; i < S::kOutPerLane; ++i) {
                const float v = machine::shared_load<float>(tile_at + (key * S::kTileRow + 32 * i + lane) * 4);
                HOTLOOP_UNROLL
                for (int r = 0; r < kRows; ++r) sum[r][i] = fmaf(weight[r], v, sum[r][i]);
            }
        }
    }

    HOTLOOP_DEVICE static int tiles(const KeySet& set) { return (set.keys + S::kTileKeys - 1) / S::kTileKeys; }

    HOTLOOP_DEVICE void reset_softmax() {
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) {
            m[r] = -infinity();
            l[r] = 0.0f;
        }
    }

    HOTLOOP_DEVICE void attend() {
        const KeySet& set = p.set[0];
        reset_softmax();
        for (int tile = 0; tile < tiles(set); ++tile) {
            float s[kRows], rescale[kRows], sum[kRows][S::kOutPerLane];
            load_keys(set.k, tile, set.keys);
            scores(s, tile, set.keys, p.mask.kind != Mask::none);
            HOTLOOP_UNROLL
            for (int r = 0; r < kRows; ++r) rescale[r] = update(s[r], r);
            load_keys(set.v, tile, set.keys);
            multiply_values(sum, s);
            HOTLOOP_UNROLL
            for (int r = 0; r < kRows; ++r) {
                HOTLOOP_UNROLL
                for (int i = 0; i < S::kOutPerLane; ++i) o[r][i] = fmaf(o[r][i], rescale[r], sum[r][i]);
            }
        }
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const float inverse = l[r] == 0.0f ? 0.0f : 1.0f / l[r];
            HOTLOOP_UNROLL
            for (int i = 0; i < S::kOutPerLane; ++i) o[r][i] *= inverse;
        }
    }

    // The maximum and the sum in one pass over the keys; in a second the weighted values go straight into o.
    HOTLOOP_DEVICE void add_segment(const KeySet& set) {
        float factor[kRows];
        bool any = false;
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const int query = first + row + r;
            const int64_t at = batch * set.weight_batch + head * set.weight_head + query * set.weight_query;
            factor[r] = query < p.queries ? set.weight[at] : 0.0f;
            any = any || factor[r] != 0.0f;
        }
        if (!machine::sync_any(any)) return;

        // Measure.
        reset_softmax();
        for (int tile = 0; tile < tiles(set); ++tile) {
            float s[kRows];
            load_keys(set.k, tile, set.keys);
            scores(s, tile, set.keys, false);
            HOTLOOP_UNROLL
            for (int r = 0; r < kRows; ++r) update(s[r], r);
        }
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) factor[r] = l[r] == 0.0f ? 0.0f : factor[r] / l[r];

        // Add. Rows whose weight is 0 keep their bits.
        for (int tile = 0; tile < tiles(set); ++tile) {
            float s[kRows], sum[kRows][S::kOutPerLane];
            load_keys(set.k, tile, set.keys);
            scores(s, tile, set.keys, false);
            HOTLOOP_UNROLL
            for (int r = 0; r < kRows; ++r) s[r] = machine::exp(s[r] - offset_of(m[r]));
            load_keys(set.v, tile, set.keys);
            multiply_values(sum, s);
            HOTLOOP_UNROLL
            for (int r = 0; r < kRows; ++r) {
                HOTLOOP_UNROLL
                for (int i = 0; i < S::kOutPerLane; ++i)
                    o[r][i] = factor[r] == 0.0f ? o[r][i] : fmaf(factor[r], sum[r][i], o[r][i]);
            }
        }
    }

    HOTLOOP_DEVICE void store() const {
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const int query = first + row + r;
            if (query >= p.queries) continue;
            float* line =
                reinterpret_cast<float*>(p.out.data) + batch * p.out.batch + head * p.out.head + query * p.out.token;
            HOTLOOP_UNROLL
            for (int i = 0; i < S::kOutPerLane; ++i)
                if (32 * i + lane < p.head_size) line[32 * i + lane] = o[r][i];
        }
    }

    HOTLOOP_DEVICE void run() {
        load<S::kRows, S::kHeadSize>(q_tile, p.q, first, p.queries);
        HOTLOOP_UNROLL
        for (int r = 0; r < kRows; ++r) {
            HOTLOOP_UNROLL
            for (int i = 0; i < S::kOutPerLane; ++i) o[r][i] = 0.0f;
        }
        attend();
        for (int s = 1; s < p.sets; ++s) add_segment(p.set[s]);
        store();
    }
};

}  // namespace hotloop::attention_kernels
