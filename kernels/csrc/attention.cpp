// attention: softmax(q k^T scale + mask) v, plus weighted attentions to further keys and values, scores in the cache
// only.
//
// What:    one pass over the keys per tile of queries with a running maximum and sum (Milakov & Gimelshein 2018; Dao et
//          al. 2022), every set of keys with a softmax of its own.
// Layout:  [B, T, H, D], the last dimension contiguous. Inside, queries lie across the lanes (see attention_tile.h).
// Limit:   multiplication. One core of a Zen 5 at 4.1 GHz, 4096 tokens, 8 heads of 40: float32 82 % of its 266 GFLOP/s,
//          bfloat16 72 % of its 535. Of the time, 82 and 75 % are the two products, which run at their limit, and 11
//          and 19 % the exponentials; the rest moves rows. At 256 tokens of 160, with a quarter of the exponentials per
//          product, 85 and 82 %.
// Order:   a query's sums run over blocks of keys whose size depends on D and the instruction set alone. So its result
//          depends neither on the number of threads nor on what else is in the batch, bit for bit.

#include <cstdint>

#include "attention_tile.h"
#include "threads.h"

namespace hotloop {
namespace {

constexpr AttentionKernel kPortable = KernelOf<SingleFloats<Portable>>::table();

const AttentionKernel& kernel_for(const Attention& a) {
#ifdef HOTLOOP_X86
    const bool bf16 = a.q.dtype == DType::bf16;
    switch (isa()) {
        case Isa::avx512:
            return bf16 && __builtin_cpu_supports("avx512bf16") ? kAttentionAvx512Bf16 : kAttentionAvx512;
        case Isa::avx2:
            return kAttentionAvx2;
        case Isa::scalar:
            break;
    }
#endif
    return kPortable;
}

constexpr int64_t kLine = 64 / sizeof(float);  // a cache line

float* aligned(float* p) {
    const auto at = reinterpret_cast<uintptr_t>(p);
    return p + (kLine - at / sizeof(float) % kLine) % kLine;
}

}  // namespace

void attention(const Attention& a) {
    const AttentionKernel& kernel = kernel_for(a);
    const int64_t B = a.q.shape[0], Tq = a.q.shape[1], heads = a.q.shape[2], D = a.q.shape[3];
    if (B * Tq * heads == 0) return;
    const int64_t vectors = (Tq + kernel.lanes - 1) / kernel.lanes;
    const auto tiles_of = [&](int64_t width) { return (vectors + width - 1) / width; };
    // About eight multiplications take as long as a value of the other operators.
    const bool shared = worth_waking(B * heads * Tq * D * a.k.shape[1] / 8);
    const int64_t workers = shared ? threads() : 1;
    // The widest tiles that leave one to every thread.
    int64_t width = kernel.vectors;
    while (width > 1 && B * heads * tiles_of(width) < workers) --width;
    const int64_t tiles = tiles_of(width);
    // Keys and values are copied once per chunk, so a chunk takes as many tiles as a second-level cache holds
    // (streaming its tiles costs less than copying again), and fewer where threads would stand idle.
    const int64_t tile_bytes = kernel.lanes * kernel.vectors * D * 4 * (a.segments ? 3 : 2);
    const int64_t by_cache = 1024 * 1024 / tile_bytes, by_threads = B * heads * tiles / (2 * workers);
    int64_t group = by_cache < by_threads ? by_cache : by_threads;
    group = group < 1 ? 1 : group > kMaxTiles ? kMaxTiles : group;
    const int64_t groups = (tiles + group - 1) / group;
    const auto run = [&](int64_t i) {
        const int64_t head = i / groups, g = i % groups;
        const AttentionChunk chunk{head / heads, head % heads, g * tiles / groups, (g + 1) * tiles / groups, tiles};
        kernel.run(a, chunk, aligned(scratch(kernel.scratch(a, chunk.last - chunk.first) + kLine)));
    };
    if (shared) {
        parallel_for(B * heads * groups, run);
    } else {
        for (int64_t i = 0; i < B * heads * groups; ++i) run(i);
    }
}

}  // namespace hotloop
