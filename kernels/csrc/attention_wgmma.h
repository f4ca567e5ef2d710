// attention by wgmma, sm_90a: the body of the kernel for the self-attentions of SD 1.5 (head sizes 40, 80 and 160).
//
// What:    a producer warpgroup whose first thread lets TMA fill a ring of K and V tiles, and two consumers of 64 query
//          rows each. They take turns at the tensor cores: while one computes exponentials, the other multiplies.
//          Within a consumer the next tile's Q K^T is issued together with this tile's P V, so that they overlap its
//          softmax. No mask and no segments: attention_mma.h has those.
// Layout:  tiles as 128-byte swizzled panels of 64 columns, where TMA pads a head of 40 with zeros: Q K^T sums 48
//          columns, P V makes 40. P goes from the accumulators straight into the A registers.
// Limit:   head size 40: exp (36 us a layer and image of 4,096 tokens on 132 SMs, against 27 us of products).
// Order:   keys in tile order.
#pragma once

#include <cstdint>

#include "attention_cuda.h"
#include "attention_mma.h"  // infinity, offset_of
#include "machine.h"

namespace hotloop::attention_kernels {

template <class T, class S>
struct WgmmaAttention {
    static constexpr int kConsumerWarps = 8;
    static constexpr int kScores = S::kTileKeys / 2;  // registers: four for every eight keys
    static constexpr int kOut = S::kHeadSize / 2;

    const Params& p;
    const machine::TensorMap &q_map, &k_map, &v_map;
    const int head, batch, first, tiles;
    const uint32_t q_tile, k_ring, v_ring, barriers;

    HOTLOOP_DEVICE WgmmaAttention(const Params& params, const machine::TensorMap& q, const machine::TensorMap& k,
                                  const machine::TensorMap& v, uint32_t shared)
        : p(params),
          q_map(q),
          k_map(k),
          v_map(v),
          head(machine::block_y()),
          batch(machine::block_z()),
          first(machine::block_x() * S::kRows),
          tiles((p.set[0].keys + S::kTileKeys - 1) / S::kTileKeys),
          q_tile((shared + maps::kPanelAtom - 1) / maps::kPanelAtom * maps::kPanelAtom),
          k_ring(q_tile + S::kQueryBytes),
          v_ring(k_ring + S::kStages * S::kTileBytes),
          barriers(v_ring + S::kStages * S::kTileBytes) {}

    // One barrier for Q, then for every stage: K full, K empty, V full, V empty.
    HOTLOOP_DEVICE uint32_t q_full() const { return barriers; }
    HOTLOOP_DEVICE uint32_t full(bool values, int tile) const {
        return barriers + 8 * (1 + 4 * (tile % S::kStages) + 2 * values);
    }
    HOTLOOP_DEVICE uint32_t empty(bool values, int tile) const { return full(values, tile) + 8; }
    HOTLOOP_DEVICE static int parity(int tile) { return tile / S::kStages & 1; }

    // --- Producer ---
    HOTLOOP_DEVICE void produce(bool values, int tile) const {
        machine::barrier_wait(empty(values, tile), parity(tile) ^ 1);
        machine::barrier_expect(full(values, tile), S::kTileBytes);
        const uint32_t stage = (values ? v_ring : k_ring) + tile % S::kStages * S::kTileBytes;
        for (int panel = 0; panel < S::kPanels; ++panel)
            machine::load_box(stage + panel * S::kTileKeys * maps::kPanelRow, values ? v_map : k_map,
                              full(values, tile), panel * maps::kPanelColumns, tile * S::kTileKeys, head, batch);
    }

    HOTLOOP_DEVICE void produce_all() const {
        machine::barrier_expect(q_full(), S::kQueryBytes);
        for (int panel = 0; panel < S::kPanels; ++panel)
            machine::load_box(q_tile + panel * S::kRows * maps::kPanelRow, q_map, q_full(), panel * maps::kPanelColumns,
                              first, head, batch);
        for (int tile = 0; tile < tiles; ++tile) {
            produce(false, tile);
            produce(true, tile);
        }
    }

    // --- Consumer ---
    struct Consumer {
        const WgmmaAttention& of;
        const int own, lane, row;  // own: 0 or 1; row: this warp's first, in the block

        float s[kScores], o[kOut];
        uint32_t probabilities[S::kTileKeys / 16][4];
        float m[2], l[2], rescale[2];

        HOTLOOP_DEVICE Consumer(const WgmmaAttention& attention, int warpgroup)
            : of(attention),
              own(warpgroup - 1),
              lane(machine::thread() & 31),
              row(own * 64 + machine::thread() / 32 % 4 * 16) {}

        HOTLOOP_DEVICE void take_turn() const { machine::named_sync(1 + own, 256); }
        HOTLOOP_DEVICE void pass_turn() const { machine::named_arrive(2 - own, 256); }
        HOTLOOP_DEVICE void release(bool values, int tile) const {
            if (lane == 0) machine::barrier_arrive(of.empty(values, tile));
        }

        // S = Q K^T
        HOTLOOP_DEVICE void multiply_keys(int tile) {
            const uint32_t k_tile = of.k_ring + tile % S::kStages * S::kTileBytes;
            const uint32_t q = of.q_tile + own * 64 * maps::kPanelRow;
            HOTLOOP_UNROLL
            for (int step = 0; step < S::kSteps; ++step)
                machine::wgmma_described<T, kScores>(s, maps::descriptor_k_major(q, S::kRows, 16 * step),
                                                     maps::descriptor_k_major(k_tile, S::kTileKeys, 16 * step),
                                                     step > 0);
            machine::wgmma_commit();
        }

        // O += P V
        HOTLOOP_DEVICE void multiply_values(int tile) {
            const uint32_t v_tile = of.v_ring + tile % S::kStages * S::kTileBytes;
            HOTLOOP_UNROLL
            for (int group = 0; group < S::kTileKeys / 16; ++group)
                machine::wgmma_registers<T, kOut>(o, probabilities[group],
                                                  maps::descriptor_mn_major(v_tile, S::kTileKeys, 16 * group));
            machine::wgmma_commit();
        }

        HOTLOOP_DEVICE void softmax(int tile) {
            const float scale = of.p.scale * kLog2e;
            const int left = of.p.set[0].keys - tile * S::kTileKeys - maps::fragment_column(lane);
            if (left < S::kTileKeys) {  // the last tile: keys past the end
                HOTLOOP_UNROLL
                for (int i = 0; i < kScores; ++i)
                    if (i / 4 * 8 + i % 2 >= left) s[i] = -infinity();
            }
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                float top = -infinity();
                HOTLOOP_UNROLL
                for (int i = 2 * half; i < kScores; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
                top = fmaxf(top, machine::shuffle_xor(top, 1));
                top = fmaxf(m[half], fmaxf(top, machine::shuffle_xor(top, 2)) * scale);
                const float offset = offset_of(top);
                rescale[half] = machine::exp2(m[half] - offset);
                m[half] = top;
                float sum = 0.0f;
                HOTLOOP_UNROLL
                for (int i = 2 * half; i < kScores; i += 4) {
                    HOTLOOP_UNROLL
                    for (int k = i; k < i + 2; ++k) {
                        s[k] = machine::exp2(fmaf(s[k], scale, -offset));
                        sum += s[k];
                    }
                }
                l[half] = l[half] * rescale[half] + sum;
            }
        }

        // The accumulators' layout is the A operand's, eight keys beside eight keys.
        HOTLOOP_DEVICE void pack_probabilities() {
            HOTLOOP_UNROLL
            for (int group = 0; group < S::kTileKeys / 16; ++group) {
                HOTLOOP_UNROLL
                for (int i = 0; i < 4; ++i)
                    probabilities[group][i] = machine::pack<T>(s[8 * group + 2 * i], s[8 * group + 2 * i + 1]);
            }
        }

        HOTLOOP_DEVICE void scale_out(const float (&factor)[2]) {
            HOTLOOP_UNROLL
            for (int i = 0; i < kOut; ++i) o[i] *= factor[i / 2 % 2];
        }

        HOTLOOP_DEVICE void attend() {
            HOTLOOP_UNROLL
            for (int i = 0; i < kOut; ++i) o[i] = 0.0f;
            m[0] = m[1] = -infinity();
            l[0] = l[1] = 0.0f;
            if (own == 1) pass_turn();  // the first turn is consumer 0's

            machine::barrier_wait(of.q_full(), 0);
            machine::barrier_wait(of.full(false, 0), 0);
            take_turn();
            machine::hold(s);
            machine::wgmma_start();
            multiply_keys(0);
            // Each turn taken is one passed to: consumer 1 passes its last to nobody.
            if (own == 0 || of.tiles > 1) pass_turn();
            machine::wgmma_finish<0>();
            machine::hold(s);
            release(false, 0);
            softmax(0);
            pack_probabilities();

            HOTLOOP_NO_UNROLL
            for (int tile = 1; tile < of.tiles; ++tile) {
                machine::barrier_wait(of.full(true, tile - 1), parity(tile - 1));  // sent before K, so here before it
                machine::barrier_wait(of.full(false, tile), parity(tile));
                take_turn();
                machine::hold(s);
                machine::hold(o);
                machine::hold(probabilities);
                machine::wgmma_start();
                multiply_keys(tile);
                multiply_values(tile - 1);
                if (own == 0 || tile + 1 < of.tiles) pass_turn();
                machine::wgmma_finish<1>();
                machine::hold(s);
                release(false, tile);
                softmax(tile);
                machine::wgmma_finish<0>();
                machine::hold(o);
                machine::hold(probabilities);
                release(true, tile - 1);
                scale_out(rescale);
                pack_probabilities();
            }

            machine::barrier_wait(of.full(true, of.tiles - 1), parity(of.tiles - 1));
            machine::hold(o);
            machine::hold(probabilities);
            machine::wgmma_start();
            multiply_values(of.tiles - 1);
            machine::wgmma_finish<0>();
            machine::hold(o);
            machine::hold(probabilities);
        }

        HOTLOOP_DEVICE void store() {
            float inverse[2];
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                float sum = l[half] + machine::shuffle_xor(l[half], 1);
                sum += machine::shuffle_xor(sum, 2);
                inverse[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
            }
            scale_out(inverse);
            const View& out = of.p.out;
            HOTLOOP_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int query = of.first + row + 8 * half + maps::fragment_row(lane);
                if (query >= of.p.queries) continue;
                char* line = out.data + 2 * (of.batch * out.batch + of.head * out.head + query * out.token);
                HOTLOOP_UNROLL
                for (int i = 2 * half; i < kOut; i += 4)
                    *reinterpret_cast<uint32_t*>(line + 2 * (i / 4 * 8 + maps::fragment_column(lane))) =
                        machine::pack<T>(o[i], o[i + 1]);
            }
        }
    };

    HOTLOOP_DEVICE void run() const {
        // Uniform: wgmma must not stand in a path that could diverge.
        const int warpgroup = machine::uniform(machine::thread() / 128);
        if (machine::thread() == 0) {
            machine::barrier_start(q_full(), 1);
            for (int stage = 0; stage < S::kStages; ++stage)
                for (int values = 0; values < 2; ++values) {
                    machine::barrier_start(full(values, stage), 1);
                    machine::barrier_start(empty(values, stage), kConsumerWarps);
                }
            machine::barriers_started();
        }
        machine::sync();
        if (warpgroup == 0) {
            machine::fewer_registers<40>();
            if (machine::thread() == 0) produce_all();
        } else {
            machine::more_registers<232>();
            Consumer consumer(*this, warpgroup);
            consumer.attend();
            consumer.store();
        }
    }
};

}  // namespace hotloop::attention_kernels
