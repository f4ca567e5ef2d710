// attention by mma.sync, sm_80 and later: the body of the kernel.
//
// What:    a block owns 16-128 query rows of one head and walks over the keys in tiles: S = Q K^T, online softmax in
//          float32, O += P V. Then every segment: its maximum and sum in one pass over its keys, its weighted values
//          straight into O in a second, so that O needs no twin. Segments are short: the second Q K^T is cheap.
// Layout:  [B, T, H, D] views; tiles in shared memory as in attention_maps.h; fragments as PTX documents m16n8k16.
// Limit:   head size 40: exp (one per score); 160 and more: the tensor cores, at 2-3 warps' worth of latency hiding.
// Order:   keys in tile order, one tile's terms in the tensor core's order; segments by number. A row whose weight is 0
//          keeps its bits.
#pragma once

#include <cstdint>

#include "attention_cuda.h"
#include "machine.h"

namespace hotloop::attention_kernels {

constexpr float kLowest = -3.402823466e+38f;
HOTLOOP_DEVICE float infinity() { return __builtin_huge_valf(); }

// A mask's value times `unit`. Only a true -inf forbids: the lowest finite number must stay one when scaled by log2(e).
HOTLOOP_DEVICE float mask_value(const MaskView& mask, int64_t offset, float unit) {
    float value;
    if (mask.kind == Mask::allow) {
        value = mask.data[offset] ? 0.0f : -infinity();
    } else if (mask.kind == Mask::f32) {
        value = reinterpret_cast<const float*>(mask.data)[offset];
    } else {
        const uint16_t bits = reinterpret_cast<const uint16_t*>(mask.data)[offset];
        value = mask.kind == Mask::f16 ? machine::from_f16(bits) : machine::from_bf16(bits);
    }
    return value == -infinity() ? value : fmaxf(value * unit, kLowest);
}

// What to subtract from scores whose maximum is m: rows with nothing to look at have m = -inf and must not give NaN.
HOTLOOP_DEVICE float offset_of(float m) { return m == -infinity() ? 0.0f : m; }

template <class T, class S>
struct MmaAttention {
    static constexpr int kRowTiles = S::kRowTiles;
    static constexpr int kScoreTiles = S::kOwnKeys / 8;
    using Scores = float[kRowTiles][kScoreTiles][4];

    const Params& p;
    const int lane, column_warp, row;  // row: this warp's first, in the block
    const int head, batch, first;      // first: the block's first query
    const uint32_t q_tile, ring, share, stats;

    // This lane's places in the tiles of Q, K, V and P.
    static constexpr int kKeyWidth = S::kOwnKeys == 8 ? 4 : 2;
    const maps::Cursor<S::kKeyChunks, 2> q_place;
    const maps::Cursor<S::kKeyChunks, kKeyWidth> k_place;
    const maps::Cursor<S::kValueChunks, 2> v_place;
    const maps::Cursor<S::kTileKeys / 8, 2> p_place;

    uint32_t q[S::kHoldQ ? kRowTiles : 1][S::kHoldQ ? S::kSteps : 1][4];
    float o[kRowTiles][S::kOutTiles][4];
    float m[kRowTiles][2], l[kRowTiles][2];  // of rows fragment_row and fragment_row + 8, in units of log2

    HOTLOOP_DEVICE MmaAttention(const Params& params, uint32_t shared)
        : p(params),
          lane(machine::thread() & 31),
          column_warp(machine::thread() / 32 % S::kColumnWarps),
          row(machine::thread() / 32 / S::kColumnWarps * 16 * kRowTiles),
          head(machine::block_y()),
          batch(machine::block_z()),
          first(machine::block_x() * S::kRows),
          q_tile(shared),
          ring(shared + S::kQueryBytes),
          share(ring + p.stages * S::kStageBytes),
          stats(share + S::kShareBytes),
          q_place(row + maps::place_a(lane).row, maps::place_a(lane).chunk),
          k_place(column_warp * S::kOwnKeys + key_place(lane).row, key_place(lane).chunk),
          v_place(maps::place_a(lane).row, maps::place_a(lane).chunk),
          p_place(row + maps::place_a(lane).row, maps::place_a(lane).chunk) {}

    HOTLOOP_DEVICE static maps::Place key_place(int lane) {
        return S::kOwnKeys == 8 ? maps::place_b_narrow(lane) : maps::place_b(lane);
    }

    HOTLOOP_DEVICE const char* start(const View& view) const {
        return view.data + 2 * (batch * view.batch + head * view.head);
    }

    // Load `count` rows from `from` on: chunks that the head lacks and rows past `end` read as zero.
    template <int kRows, int kChunks>
    HOTLOOP_DEVICE void load(uint32_t tile, const View& view, int from, int end) const {
        const char* base = start(view);
        const int chunks = p.head_size / 8;
        HOTLOOP_UNROLL_SOME
        for (int i0 = 0; i0 < kRows * kChunks; i0 += S::kThreads) {
            const int i = i0 + machine::thread();
            if (kRows * kChunks % S::kThreads != 0 && i >= kRows * kChunks) break;
            const int r = i / kChunks, chunk = i % kChunks;
            const bool exists = from + r < end && chunk < chunks;
            const char* source = exists ? base + 2 * ((from + r) * view.token + chunk * 8) : base;
            const uint32_t target = tile + maps::chunk_offset(r, chunk, kChunks);
            if (p.wide_loads) {
                machine::copy_async(target, source, exists);
            } else {
                const uint16_t* values = reinterpret_cast<const uint16_t*>(source);
                machine::Words words{};
                HOTLOOP_UNROLL
                for (int k = 0; k < 4; ++k)
                    if (exists) words.word[k] = values[2 * k] | uint32_t(values[2 * k + 1]) << 16;
                machine::shared_store(target, words);
            }
        }
    }

    // --- Streaming ---
    HOTLOOP_DEVICE void load_keys(const KeySet& set, int tile, bool values) const {
        const uint32_t stage = ring + tile % p.stages * S::kStageBytes;
        load<S::kTileKeys, S::kKeyChunks>(stage, set.k, tile * S::kTileKeys, set.keys);
        if (values) load<S::kTileKeys, S::kValueChunks>(stage + S::kKeyBytes, set.v, tile * S::kTileKeys, set.keys);
    }

    // Call use(tile, stage) for every tile of the set while later ones are under way. One barrier a tile: it says both
    // that the tile has arrived for all and that all have left the stage which is filled next.
    template <class Use>
    HOTLOOP_DEVICE void stream(const KeySet& set, bool values, Use use) {
        const int tiles = (set.keys + S::kTileKeys - 1) / S::kTileKeys;
        for (int tile = 0; tile < p.stages - 1; ++tile) {
            if (tile < tiles) load_keys(set, tile, values);
            machine::copy_commit();
        }
        HOTLOOP_NO_UNROLL
        for (int tile = 0; tile < tiles; ++tile) {
            if (p.stages == 3)
                machine::copy_wait<1>();
            else
                machine::copy_wait<0>();
            machine::sync();
            const int next = tile + p.stages - 1;
            if (next < tiles) load_keys(set, next, values);
            machine::copy_commit();
            use(tile, ring + tile % p.stages * S::kStageBytes);
        }
    }

    // --- Scores ---
    HOTLOOP_DEVICE void query_fragment(uint32_t (&a)[4], int row_tile, int step) const {
        machine::load_matrices(a, q_tile + q_place.at(16 * row_tile, 2 * step));
    }

    // S = Q K^T of this warp's keys; with kGeneral only of the first `groups` times 16.
    template <bool kGeneral>
    HOTLOOP_DEVICE void multiply_keys(uint32_t k_tile, int groups, Scores& s) const {
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int n = 0; n < kScoreTiles; ++n) {
                HOTLOOP_UNROLL
                for (int i = 0; i < 4; ++i) s[t][n][i] = 0.0f;
            }
        }
        if constexpr (S::kOwnKeys == 8) {
            HOTLOOP_UNROLL_SOME
            for (int step = 0; step < S::kSteps; step += 2) {
                uint32_t a[2][4], b[4];
                query_fragment(a[0], 0, step);
                query_fragment(a[1], 0, step + 1);
                machine::load_matrices(b, k_tile + k_place.at(0, 2 * step));
                machine::multiply_add<T>(s[0][0], a[0], b[0], b[1]);
                machine::multiply_add<T>(s[0][0], a[1], b[2], b[3]);
            }
        } else {
            if constexpr (S::kHoldQ) {
                HOTLOOP_UNROLL
                for (int step = 0; step < S::kSteps; ++step) multiply_step<kGeneral>(k_tile, groups, step, s);
            } else {
                HOTLOOP_UNROLL_SOME
                for (int step = 0; step < S::kSteps; ++step) multiply_step<kGeneral>(k_tile, groups, step, s);
            }
        }
    }

    template <bool kGeneral>
    HOTLOOP_DEVICE void multiply_step(uint32_t k_tile, int groups, int step, Scores& s) const {
        uint32_t a[kRowTiles][4];
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            if constexpr (S::kHoldQ) {
                HOTLOOP_UNROLL
                for (int i = 0; i < 4; ++i) a[t][i] = q[t][step][i];
            } else {
                query_fragment(a[t], t, step);
            }
        }
        HOTLOOP_UNROLL
        for (int group = 0; group < S::kOwnKeys / 16; ++group) {
            if (kGeneral && column_warp * S::kOwnKeys / 16 + group >= groups) continue;
            uint32_t b[4];
            machine::load_matrices(b, k_tile + k_place.at(16 * group, 2 * step));
            HOTLOOP_UNROLL
            for (int t = 0; t < kRowTiles; ++t) {
                machine::multiply_add<T>(s[t][2 * group], a[t], b[0], b[1]);
                machine::multiply_add<T>(s[t][2 * group + 1], a[t], b[2], b[3]);
            }
        }
    }

    // Scale to units of log2, add the mask, forbid keys past the end.
    HOTLOOP_DEVICE void finish_scores(Scores& s, int tile, int keys, bool masked) const {
        const float scale = p.scale * kLog2e;
        const int column = tile * S::kTileKeys + column_warp * S::kOwnKeys + maps::fragment_column(lane);
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int query = first + row + 16 * t + 8 * half + maps::fragment_row(lane);
                const bool masks = masked && query < p.queries;
                const int64_t line = batch * p.mask.batch + head * p.mask.head + query * p.mask.query;
                HOTLOOP_UNROLL
                for (int n = 0; n < kScoreTiles; ++n) {
                    HOTLOOP_UNROLL
                    for (int i = 0; i < 2; ++i) {
                        const int key = column + 8 * n + i;
                        float& score = s[t][n][2 * half + i];
                        score *= scale;
                        if (key >= keys)
                            score = -infinity();
                        else if (masks)
                            score += mask_value(p.mask, line + key * p.mask.key, kLog2e);
                    }
                }
            }
        }
    }

    HOTLOOP_DEVICE static float quad_max(float value) {
        value = fmaxf(value, machine::shuffle_xor(value, 1));
        return fmaxf(value, machine::shuffle_xor(value, 2));
    }
    HOTLOOP_DEVICE static float quad_sum(float value) {
        value += machine::shuffle_xor(value, 1);
        return value + machine::shuffle_xor(value, 2);
    }

    HOTLOOP_DEVICE static float largest(const float (&s)[kScoreTiles][4], int half) {
        float value = -infinity();
        HOTLOOP_UNROLL
        for (int n = 0; n < kScoreTiles; ++n) value = fmaxf(value, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        return quad_max(value);
    }

    // s = 2^(s scale - offset); returns this lane's sum.
    HOTLOOP_DEVICE static float exponentials(float (&s)[kScoreTiles][4], int half, float scale, float offset) {
        float sum = 0.0f;
        HOTLOOP_UNROLL
        for (int n = 0; n < kScoreTiles; ++n) {
            HOTLOOP_UNROLL
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                s[n][i] = machine::exp2(fmaf(s[n][i], scale, -offset));
                sum += s[n][i];
            }
        }
        return sum;
    }

    HOTLOOP_DEVICE uint32_t stat(int t, int half, int warp) const {
        return stats + 4 * ((row + 16 * t + 8 * half + maps::fragment_row(lane)) * S::kColumnWarps + warp);
    }

    // Both column warps' values of every row (with one column warp: the value itself, twice).
    template <class Combine>
    HOTLOOP_DEVICE void across_warps(float (&value)[kRowTiles][2], Combine combine) const {
        if constexpr (S::kColumnWarps == 2) {
            HOTLOOP_UNROLL
            for (int t = 0; t < kRowTiles; ++t) {
                HOTLOOP_UNROLL
                for (int half = 0; half < 2; ++half)
                    if (lane % 4 == 0) machine::shared_store(stat(t, half, column_warp), value[t][half]);
            }
            machine::sync();
            HOTLOOP_UNROLL
            for (int t = 0; t < kRowTiles; ++t) {
                HOTLOOP_UNROLL
                for (int half = 0; half < 2; ++half)
                    value[t][half] = combine(machine::shared_load<float>(stat(t, half, 0)),
                                             machine::shared_load<float>(stat(t, half, 1)));
            }
        }
    }

    // --- Values ---

    // P as the A operand: two score tiles side by side. With two column warps it passes through shared memory, where
    // each finds the other's keys.
    HOTLOOP_DEVICE void share_probabilities(const Scores& s) const {
        if constexpr (S::kColumnWarps == 2) {
            constexpr int kChunks = S::kTileKeys / 8;
            HOTLOOP_UNROLL
            for (int t = 0; t < kRowTiles; ++t) {
                HOTLOOP_UNROLL
                for (int n = 0; n < kScoreTiles; ++n) {
                    HOTLOOP_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const int r = row + 16 * t + 8 * half + maps::fragment_row(lane);
                        const int chunk = column_warp * S::kOwnKeys / 8 + n;
                        const uint32_t at =
                            share + maps::chunk_offset(r, chunk, kChunks) + 2 * maps::fragment_column(lane);
                        machine::shared_store(at, machine::pack<T>(s[t][n][2 * half], s[t][n][2 * half + 1]));
                    }
                }
            }
            machine::sync();
        }
    }

    HOTLOOP_DEVICE void probability_fragment(uint32_t (&a)[4], const Scores& s, int t, int group) const {
        if constexpr (S::kColumnWarps == 2) {
            machine::load_matrices(a, share + p_place.at(16 * t, 2 * group));
        } else {
            a[0] = machine::pack<T>(s[t][2 * group][0], s[t][2 * group][1]);
            a[1] = machine::pack<T>(s[t][2 * group][2], s[t][2 * group][3]);
            a[2] = machine::pack<T>(s[t][2 * group + 1][0], s[t][2 * group + 1][1]);
            a[3] = machine::pack<T>(s[t][2 * group + 1][2], s[t][2 * group + 1][3]);
        }
    }

    // The B operands of output tiles `pair` and `pair + 1` (the last may stand alone), for 16 keys.
    HOTLOOP_DEVICE void value_fragment(uint32_t (&b)[4], uint32_t v_tile, int group, int pair) const {
        const uint32_t at = v_tile + v_place.at(16 * group, column_warp * S::kOutTiles + pair);
        if (pair + 1 < S::kOutTiles) {
            machine::load_matrices_transposed(b, at);
        } else {
            uint32_t narrow[2];  // lanes 0-15 hold the addresses of chunk `pair`, and only they are asked
            machine::load_matrices_transposed(narrow, at);
            b[0] = narrow[0];
            b[1] = narrow[1];
        }
    }

    // O += P V
    template <bool kGeneral>
    HOTLOOP_DEVICE void multiply_values(uint32_t v_tile, int groups, const Scores& s) {
        HOTLOOP_UNROLL
        for (int group = 0; group < S::kTileKeys / 16; ++group) {
            if (kGeneral && group >= groups) continue;
            uint32_t a[kRowTiles][4];
            HOTLOOP_UNROLL
            for (int t = 0; t < kRowTiles; ++t) probability_fragment(a[t], s, t, group);
            HOTLOOP_UNROLL
            for (int pair = 0; pair < S::kOutTiles; pair += 2) {
                uint32_t b[4];
                value_fragment(b, v_tile, group, pair);
                HOTLOOP_UNROLL
                for (int t = 0; t < kRowTiles; ++t) {
                    machine::multiply_add<T>(o[t][pair], a[t], b[0], b[1]);
                    if (pair + 1 < S::kOutTiles) machine::multiply_add<T>(o[t][pair + 1], a[t], b[2], b[3]);
                }
            }
        }
    }

    // O += factor (P V), two output tiles at a time; rows whose factor is zero keep their bits.
    HOTLOOP_DEVICE void add_values(uint32_t v_tile, int groups, const Scores& s, const float (&factor)[kRowTiles][2]) {
        HOTLOOP_UNROLL
        for (int pair = 0; pair < S::kOutTiles; pair += 2) {
            float sum[kRowTiles][2][4] = {};
            HOTLOOP_UNROLL
            for (int group = 0; group < S::kTileKeys / 16; ++group) {
                if (group >= groups) continue;
                uint32_t b[4];
                value_fragment(b, v_tile, group, pair);
                HOTLOOP_UNROLL
                for (int t = 0; t < kRowTiles; ++t) {
                    uint32_t a[4];
                    probability_fragment(a, s, t, group);
                    machine::multiply_add<T>(sum[t][0], a, b[0], b[1]);
                    if (pair + 1 < S::kOutTiles) machine::multiply_add<T>(sum[t][1], a, b[2], b[3]);
                }
            }
            HOTLOOP_UNROLL
            for (int t = 0; t < kRowTiles; ++t) {
                HOTLOOP_UNROLL
                for (int n = 0; n < 2 && pair + n < S::kOutTiles; ++n) {
                    HOTLOOP_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        const float f = factor[t][i / 2];
                        float& out = o[t][pair + n][i];
                        out = f == 0.0f ? out : fmaf(f, sum[t][n][i], out);
                    }
                }
            }
        }
    }

    // --- The attention itself ---

    // One tile: kGeneral where it has a mask, an end or a scale that is not positive.
    template <bool kGeneral>
    HOTLOOP_DEVICE void attend_tile(const KeySet& set, int tile, uint32_t stage) {
        const int left = set.keys - tile * S::kTileKeys;
        const int groups = left < S::kTileKeys ? (left + 15) / 16 : S::kTileKeys / 16;
        const float scale = kGeneral ? 1.0f : p.scale * kLog2e;
        Scores s;
        multiply_keys<kGeneral>(stage, groups, s);
        if (kGeneral) finish_scores(s, tile, set.keys, p.mask.kind != Mask::none);

        float top[kRowTiles][2];
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) top[t][half] = fmaxf(m[t][half], largest(s[t], half) * scale);
        }
        across_warps(top, [](float a, float b) { return fmaxf(a, b); });

        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const float offset = offset_of(top[t][half]);
                const float rescale = machine::exp2(m[t][half] - offset);
                m[t][half] = top[t][half];
                l[t][half] = l[t][half] * rescale + exponentials(s[t], half, scale, offset);
                HOTLOOP_UNROLL
                for (int n = 0; n < S::kOutTiles; ++n) {
                    o[t][n][2 * half] *= rescale;
                    o[t][n][2 * half + 1] *= rescale;
                }
            }
        }
        share_probabilities(s);
        multiply_values<kGeneral>(stage + S::kKeyBytes, groups, s);
    }

    HOTLOOP_DEVICE void reset_softmax() {
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                m[t][half] = -infinity();
                l[t][half] = 0.0f;
            }
        }
    }

    // The rows' sums, from the lanes' and the column warps'.
    HOTLOOP_DEVICE void finish_sums() {
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) l[t][half] = quad_sum(l[t][half]);
        }
        across_warps(l, [](float a, float b) { return a + b; });
    }

    HOTLOOP_DEVICE void attend() {
        const KeySet& set = p.set[0];
        const bool plain = p.mask.kind == Mask::none && p.scale > 0.0f;
        reset_softmax();
        stream(set, true, [&](int tile, uint32_t stage) {
            if (tile == 0 && S::kHoldQ) {  // Q came with the first tile
                HOTLOOP_UNROLL
                for (int t = 0; t < kRowTiles; ++t) {
                    HOTLOOP_UNROLL
                    for (int step = 0; step < S::kSteps; ++step)
                        query_fragment(q[S::kHoldQ ? t : 0][S::kHoldQ ? step : 0], t, step);
                }
            }
            if (plain && (tile + 1) * S::kTileKeys <= set.keys)
                attend_tile<false>(set, tile, stage);
            else
                attend_tile<true>(set, tile, stage);
        });
        finish_sums();
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const float inverse = l[t][half] == 0.0f ? 0.0f : 1.0f / l[t][half];
                HOTLOOP_UNROLL
                for (int n = 0; n < S::kOutTiles; ++n) {
                    o[t][n][2 * half] *= inverse;
                    o[t][n][2 * half + 1] *= inverse;
                }
            }
        }
    }

    // --- Segments ---
    HOTLOOP_DEVICE void segment_scores(const KeySet& set, int tile, uint32_t stage, int& groups, Scores& s) const {
        const int left = set.keys - tile * S::kTileKeys;
        groups = left < S::kTileKeys ? (left + 15) / 16 : S::kTileKeys / 16;
        multiply_keys<true>(stage, groups, s);
        finish_scores(s, tile, set.keys, false);
    }

    HOTLOOP_DEVICE void measure_tile(const KeySet& set, int tile, uint32_t stage) {
        int groups;
        Scores s;
        segment_scores(set, tile, stage, groups, s);
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const float top = fmaxf(m[t][half], largest(s[t], half));
                const float offset = offset_of(top);
                l[t][half] = l[t][half] * machine::exp2(m[t][half] - offset) + exponentials(s[t], half, 1.0f, offset);
                m[t][half] = top;
            }
        }
    }

    HOTLOOP_DEVICE void add_tile(const KeySet& set, int tile, uint32_t stage, const float (&factor)[kRowTiles][2]) {
        int groups;
        Scores s;
        segment_scores(set, tile, stage, groups, s);
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) exponentials(s[t], half, 1.0f, offset_of(m[t][half]));
        }
        share_probabilities(s);
        add_values(stage + S::kKeyBytes, groups, s, factor);
    }

    HOTLOOP_DEVICE void add_segment(const KeySet& set) {
        float factor[kRowTiles][2];
        bool any = false;
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int query = first + row + 16 * t + 8 * half + maps::fragment_row(lane);
                const bool exists = query < p.queries;
                const int64_t at = batch * set.weight_batch + head * set.weight_head + query * set.weight_query;
                factor[t][half] = exists ? set.weight[at] : 0.0f;
                any = any || factor[t][half] != 0.0f;
            }
        }
        // Also the barrier after which the stages may be filled anew.
        if (!machine::sync_any(any)) return;

        // Measure. A segment of one tile keeps it for the second pass.
        const bool resident = set.keys <= S::kTileKeys;
        reset_softmax();
        stream(set, resident, [&](int tile, uint32_t stage) { measure_tile(set, tile, stage); });
        float own[kRowTiles][2], top[kRowTiles][2];
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) own[t][half] = top[t][half] = m[t][half];
        }
        across_warps(top, [](float a, float b) { return fmaxf(a, b); });
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                m[t][half] = top[t][half];
                l[t][half] *= machine::exp2(own[t][half] - offset_of(top[t][half]));
            }
        }
        machine::sync();  // all have read the maxima, and left the stages
        finish_sums();
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half)
                factor[t][half] = l[t][half] == 0.0f ? 0.0f : factor[t][half] / l[t][half];
        }
        // Add.
        if (resident)
            add_tile(set, 0, ring, factor);
        else
            stream(set, true, [&](int tile, uint32_t stage) { add_tile(set, tile, stage, factor); });
    }

    // --- Out ---
    HOTLOOP_DEVICE void store() const {
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int query = first + row + 16 * t + 8 * half + maps::fragment_row(lane);
                if (query >= p.queries) continue;
                char* line = p.out.data + 2 * (batch * p.out.batch + head * p.out.head + query * p.out.token);
                HOTLOOP_UNROLL
                for (int n = 0; n < S::kOutTiles; ++n) {
                    const int column = (column_warp * S::kOutTiles + n) * 8 + maps::fragment_column(lane);
                    if (column >= p.head_size) continue;
                    const uint32_t pair = machine::pack<T>(o[t][n][2 * half], o[t][n][2 * half + 1]);
                    if (p.wide_stores) {
                        *reinterpret_cast<uint32_t*>(line + 2 * column) = pair;
                    } else {
                        reinterpret_cast<uint16_t*>(line)[column] = uint16_t(pair);
                        reinterpret_cast<uint16_t*>(line)[column + 1] = uint16_t(pair >> 16);
                    }
                }
            }
        }
    }

    // kSegmented: false leaves the segments' code out.
    template <bool kSegmented>
    HOTLOOP_DEVICE void run() {
        load<S::kRows, S::kKeyChunks>(q_tile, p.q, first, p.queries);  // in the group of the first tile
        HOTLOOP_UNROLL
        for (int t = 0; t < kRowTiles; ++t) {
            HOTLOOP_UNROLL
            for (int n = 0; n < S::kOutTiles; ++n) {
                HOTLOOP_UNROLL
                for (int i = 0; i < 4; ++i) o[t][n][i] = 0.0f;
            }
        }
        attend();
        if constexpr (kSegmented) {
            HOTLOOP_NO_UNROLL
            for (int s = 1; s < p.sets; ++s) add_segment(p.set[s]);
        }
        store();
    }
};

}  // namespace hotloop::attention_kernels
