// What the CUDA attention kernels are told, and what the host decides before a launch. No CUDA types: the CPU tests run
// the same decisions.
#pragma once

#include <cstdint>

#include "attention_maps.h"
#include "ops.h"

namespace hotloop::attention_kernels {

// [B, T, H, D], strides in elements; D is contiguous.
struct View {
    char* data;
    int64_t batch, token, head;
};

// Keys and values with a softmax of their own. The weight (null: 1) is float32 over [B, H, Tq].
struct KeySet {
    View k, v;
    int keys;
    const float* weight;
    int64_t weight_batch, weight_head, weight_query;
};

enum class Mask { none, allow, f32, f16, bf16 };

struct MaskView {
    const char* data;
    Mask kind;
    int64_t batch, head, query, key;
};

struct Params {
    View q, out;
    KeySet set[1 + kMaxSegments];  // set[0]: the attention itself
    int sets;
    MaskView mask;  // of set[0]
    int queries, head_size;
    float scale;       // of q.k
    bool wide_loads;   // every row of q, k, v starts at a multiple of 16 bytes
    bool wide_stores;  // every row of out starts at a multiple of two elements
    int stages;        // K/V tiles in flight
};

inline View view_of(const Tensor& t) { return {static_cast<char*>(t.data), t.stride[0], t.stride[1], t.stride[2]}; }

// Every [:, :, :, 0] lies at a multiple of so many bytes.
inline bool rows_aligned(const Tensor& t, int bytes) {
    bool aligned = reinterpret_cast<uintptr_t>(t.data) % bytes == 0;
    for (int i = 0; i < 3; ++i) aligned = aligned && (t.shape[i] == 1 || t.stride[i] * bytes_of(t.dtype) % bytes == 0);
    return aligned;
}

inline Mask mask_kind(const Tensor& mask) {
    if (!mask) return Mask::none;
    if (mask.dtype == DType::u8) return Mask::allow;
    return mask.dtype == DType::f32 ? Mask::f32 : mask.dtype == DType::f16 ? Mask::f16 : Mask::bf16;
}

// `stages` is left to the launch. Segments without keys are left out.
inline Params params_of(const Attention& op) {
    Params p{};
    p.q = view_of(op.q);
    p.out = view_of(op.out);
    p.queries = int(op.q.shape[1]);
    p.head_size = int(op.q.shape[3]);
    p.scale = op.scale;
    p.wide_loads = rows_aligned(op.q, 16) && rows_aligned(op.k, 16) && rows_aligned(op.v, 16);
    p.wide_stores = rows_aligned(op.out, int(2 * bytes_of(op.out.dtype)));
    p.set[p.sets++] = {view_of(op.k), view_of(op.v), int(op.k.shape[1]), nullptr, 0, 0, 0};
    for (int i = 0; i < op.segments; ++i) {
        const auto& [k, v, weight] = op.segment[i];
        if (k.shape[1] == 0) continue;
        p.wide_loads = p.wide_loads && rows_aligned(k, 16) && rows_aligned(v, 16);
        p.set[p.sets++] = {view_of(k),       view_of(v),       int(k.shape[1]), static_cast<const float*>(weight.data),
                           weight.stride[0], weight.stride[1], weight.stride[2]};
    }
    const int64_t* stride = op.mask.stride;
    p.mask = {static_cast<const char*>(op.mask.data), mask_kind(op.mask), stride[0], stride[1], stride[2], stride[3]};
    return p;
}

constexpr float kLog2e = 1.44269504088896340736f;

// One instance of the mma.sync kernel. A warp owns 16 kRowTiles query rows; with kColumnWarps = 2 two warps share the
// rows and split the output columns, and the keys of a tile while scores are computed.
template <int kHeadSize_, int kRowTiles_, int kTileKeys_, int kRowWarps_ = 4, int kColumnWarps_ = 1>
struct MmaShape {
    static constexpr int kHeadSize = kHeadSize_;
    static constexpr int kRowTiles = kRowTiles_;
    static constexpr int kTileKeys = kTileKeys_;
    static constexpr int kRowWarps = kRowWarps_;
    static constexpr int kColumnWarps = kColumnWarps_;

    static constexpr int kThreads = 32 * kRowWarps * kColumnWarps;
    static constexpr int kRows = 16 * kRowTiles * kRowWarps;
    // Blocks that shall fit an SM's registers: as many as compile without spills (128: as its shared memory lets in).
    static constexpr int kResident = kColumnWarps == 2                                       ? 1
                                     : kRowTiles == 2 || kHeadSize == 128 || kHeadSize > 160 ? 2
                                     : kHeadSize > 40                                        ? 3
                                                                                             : 4;
    static constexpr int kSteps = (kHeadSize + 15) / 16;  // QK sums 16 columns at a time: 40 is padded to 48
    static constexpr int kKeyChunks = 2 * kSteps;
    static constexpr int kValueChunks = kHeadSize / 8;  // PV makes 8 columns at a time: 40 stays 40
    static constexpr int kOutTiles = kValueChunks / kColumnWarps;
    static constexpr int kOwnKeys = kTileKeys / kColumnWarps;
    // Q stays in registers while it takes at most 24 of them; more would spill.
    static constexpr bool kHoldQ = kColumnWarps == 1 && kRowTiles * kSteps * 4 <= 24;

    static constexpr int kQueryBytes = kRows * kKeyChunks * 16;
    static constexpr int kKeyBytes = kTileKeys * kKeyChunks * 16;
    static constexpr int kValueBytes = kTileKeys * kValueChunks * 16;
    static constexpr int kStageBytes = kKeyBytes + kValueBytes;
    static constexpr int kShareBytes = kColumnWarps == 1 ? 0 : kRows * kTileKeys * 2;  // P, between the two warps
    static constexpr int kStatBytes = kColumnWarps == 1 ? 0 : kRows * kColumnWarps * 4;
    static constexpr int bytes(int stages) { return kQueryBytes + stages * kStageBytes + kShareBytes + kStatBytes; }
};

// Two or three stages: three where they fit without costing a resident block, since a tile then has two tiles' time to
// arrive. 0: the instance does not fit this GPU. `block_limit`, `sm_limit`: shared memory per block and per SM in
// bytes; `resident`: blocks per SM that registers allow. A block also costs the 1 KB that CUDA reserves.
HOTLOOP_HD constexpr int choose_stages(int bytes_two, int stage_bytes, int block_limit, int sm_limit, int resident) {
    const int bytes_three = bytes_two + stage_bytes;
    if (bytes_two > block_limit) return 0;
    const int with_two = sm_limit / (bytes_two + 1024), with_three = sm_limit / (bytes_three + 1024);
    const int wanted = with_two < resident ? with_two : resident;
    return bytes_three <= block_limit && with_three >= wanted ? 3 : 2;
}

// 128 query rows a block read K and V half as often as 64, but only pay when they still fill the GPU.
HOTLOOP_HD constexpr bool prefer_tall(int64_t batch, int64_t heads, int64_t queries, int processors) {
    return batch * heads * ((queries + 127) / 128) >= processors;
}

// Call use(shape) with the instance for a head size of 8..256 or 512; `tall` blocks exist up to head size 80.
template <class Use>
void with_mma_shape(int head_size, bool tall, int block_limit, Use use) {
    if (head_size <= 16) {
        use(MmaShape<16, 1, 64>{});
    } else if (head_size <= 32) {
        use(MmaShape<32, 1, 64>{});
    } else if (head_size <= 40) {
        if (tall) return use(MmaShape<40, 2, 64>{});
        use(MmaShape<40, 1, 64>{});
    } else if (head_size <= 64) {
        if (tall) return use(MmaShape<64, 2, 64>{});
        use(MmaShape<64, 1, 64>{});
    } else if (head_size <= 80) {
        if (tall) return use(MmaShape<80, 2, 64>{});
        use(MmaShape<80, 1, 64>{});
    } else if (head_size <= 128) {
        use(MmaShape<128, 1, 64>{});
    } else if (head_size <= 160) {
        use(MmaShape<160, 1, 32>{});
    } else if (head_size <= 256) {
        use(MmaShape<256, 1, 32>{});
    } else if (block_limit >= MmaShape<512, 1, 32, 4, 2>::bytes(2)) {
        use(MmaShape<512, 1, 32, 4, 2>{});  // 193 KB: Hopper
    } else {
        use(MmaShape<512, 1, 16, 2, 2>{});  // 97 KB: all others
    }
}

// The fp32 kernel: a warp owns four query rows; one tile of 32 keys holds K, then V.
template <int kHeadSize_, int kWarps_>
struct FfmaShape {
    static constexpr int kHeadSize = kHeadSize_;  // a multiple of 32
    static constexpr int kWarps = kWarps_;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kRowsPerWarp = 4;
    static constexpr int kRows = kWarps * kRowsPerWarp;
    static constexpr int kTileKeys = 32;                // one per lane
    static constexpr int kTileRow = kHeadSize + 4;      // floats: an odd number of 16-byte chunks
    static constexpr int kOutPerLane = kHeadSize / 32;  // columns lane, lane + 32, ...
    static constexpr int kBytes = (kRows * kHeadSize + kTileKeys * kTileRow) * 4;
};

template <class Use>
void with_ffma_shape(int head_size, Use use) {
    if (head_size <= 64)
        use(FfmaShape<64, 8>{});
    else if (head_size <= 128)
        use(FfmaShape<128, 8>{});
    else if (head_size <= 256)
        use(FfmaShape<256, 8>{});
    else
        use(FfmaShape<512, 4>{});
}

// One instance of the Hopper kernel: a producer warpgroup and two consumers of 64 query rows each.
template <int kHeadSize_, int kTileKeys_, int kStages_>
struct WgmmaShape {
    static constexpr int kHeadSize = kHeadSize_;
    static constexpr int kTileKeys = kTileKeys_;
    static constexpr int kStages = kStages_;
    static constexpr int kThreads = 384;
    static constexpr int kRows = 128;
    static constexpr int kSteps = (kHeadSize + 15) / 16;
    static constexpr int kPanels = (kHeadSize + maps::kPanelColumns - 1) / maps::kPanelColumns;
    static constexpr int kQueryBytes = kPanels * kRows * maps::kPanelRow;
    static constexpr int kTileBytes = kPanels * kTileKeys * maps::kPanelRow;  // K or V
    // The barriers come last; the first kilobyte may be lost to alignment.
    static constexpr int kBarriers = 1 + 4 * kStages;
    static constexpr int kBytes = 1024 + kQueryBytes + 2 * kStages * kTileBytes + 8 * kBarriers;
};

// Call use(shape) with the instance for a head size of 40, 80 or 160.
template <class Use>
void with_wgmma_shape(int head_size, Use use) {
    if (head_size == 40)
        use(WgmmaShape<40, 128, 4>{});
    else if (head_size == 80)
        use(WgmmaShape<80, 128, 2>{});
    else
        use(WgmmaShape<160, 64, 3>{});
}

// A tensor map in words: 64 columns x `rows` tokens of one head and image, 128-byte swizzled, outside reads as zero.
struct MapPlan {
    char* data;
    uint64_t size[4];    // columns, tokens, heads, images
    uint64_t stride[3];  // bytes: token, head, image
    uint32_t rows;
};

inline MapPlan map_plan(const View& view, int64_t head_size, int64_t tokens, int64_t heads, int64_t batch, int rows) {
    // A dimension of size 1 may carry any stride; TMA wants a plausible one.
    const auto bytes = [&](int64_t stride, int64_t size, int64_t other) {
        return uint64_t(2 * (size > 1 ? stride : other));
    };
    MapPlan plan{};
    plan.data = view.data;
    plan.size[0] = uint64_t(head_size);
    plan.size[1] = uint64_t(tokens);
    plan.size[2] = uint64_t(heads);
    plan.size[3] = uint64_t(batch);
    plan.stride[0] = bytes(view.token, tokens, head_size);
    plan.stride[1] = bytes(view.head, heads, head_size);
    plan.stride[2] = bytes(view.batch, batch, head_size);
    plan.rows = uint32_t(rows);
    return plan;
}

// What TMA asks of a tensor: 16-byte base and strides, strides below 2^40 bytes, and none that is zero (a broadcast).
inline bool map_fits(const MapPlan& plan) {
    bool fits = reinterpret_cast<uintptr_t>(plan.data) % 16 == 0;
    for (const uint64_t stride : plan.stride)
        fits = fits && stride % 16 == 0 && stride > 0 && stride < uint64_t(1) << 40;
    for (const uint64_t size : plan.size) fits = fits && size > 0 && size <= uint64_t(1) << 32;
    return fits;
}

// Whether the Hopper kernel can do it: it is for self-attention, has no mask, segments or slow loads, and a tile is 128
// keys. Small query counts are left to smaller blocks.
inline bool wgmma_fits(const Attention& op, const Params& p) {
    const bool known = p.head_size == 40 || p.head_size == 80 || p.head_size == 160;
    const bool simple = p.mask.kind == Mask::none && p.sets == 1 && p.scale > 0.0f && p.wide_stores;
    if (!known || !simple || op.q.dtype == DType::f32 || p.queries < 128 || p.set[0].keys < 128) return false;
    const int64_t B = op.q.shape[0], H = op.q.shape[2];
    return map_fits(map_plan(p.q, p.head_size, p.queries, H, B, 1)) &&
           map_fits(map_plan(p.set[0].k, p.head_size, p.set[0].keys, H, B, 1)) &&
           map_fits(map_plan(p.set[0].v, p.head_size, p.set[0].keys, H, B, 1));
}

}  // namespace hotloop::attention_kernels
