// attention: softmax(q k^T scale + mask) v, and further sets of keys and values weighted and added, never storing scores.
#include <cstdlib>
#include <memory>
#include <new>

#include "attention_tile.h"
#include "threads.h"

namespace hotloop {
namespace {

constexpr AttentionKernel kPortable = KernelOf<SingleFloats<Portable>>::table();

const AttentionKernel& kernel_for(const Attention& a) {
#ifdef HOTLOOP_X86
    const bool bf16 = a.q.dtype == DType::bf16;
    switch (isa()) {
        case Isa::avx512: return bf16 && __builtin_cpu_supports("avx512bf16") ? kAttentionAvx512Bf16 : kAttentionAvx512;
        case Isa::avx2: return kAttentionAvx2;
        case Isa::scalar: break;
    }
#endif
    return kPortable;
}

// A buffer per thread, kept: fresh pages would cost as much as a small attention.
float* scratch(int64_t floats) {
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<float, Free> buffer;
    thread_local int64_t size = 0;
    if (floats > size) {
        const int64_t bytes = (floats * 4 + 63) / 64 * 64;
        buffer.reset();
        buffer.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
        if (!buffer) std::abort();
        size = floats;
    }
    return buffer.get();
}

}  // namespace

void attention(const Attention& a) {
    const AttentionKernel& kernel = kernel_for(a);
    const int64_t B = a.q.shape[0], Tq = a.q.shape[1], heads = a.q.shape[2], D = a.q.shape[3];
    if (B * Tq * heads == 0) return;
    const int64_t vectors = (Tq + kernel.lanes - 1) / kernel.lanes;
    const int64_t tiles = (vectors + kernel.vectors - 1) / kernel.vectors;
    // Keys and values are copied once per chunk, so a chunk takes as many tiles as a second-level cache holds (streaming
    // its tiles costs less than copying again), and fewer where threads would stand idle.
    const int64_t tile_bytes = kernel.lanes * kernel.vectors * D * 4 * (a.segments ? 3 : 2);
    const int64_t by_cache = 1024 * 1024 / tile_bytes, by_threads = B * heads * tiles / (2 * threads());
    int64_t group = by_cache < by_threads ? by_cache : by_threads;
    group = group < 1 ? 1 : group > kMaxTiles ? kMaxTiles : group;
    const int64_t groups = (tiles + group - 1) / group;
    parallel_for(B * heads * groups, [&](int64_t i) {
        const int64_t head = i / groups, g = i % groups;
        const AttentionChunk chunk{head / heads, head % heads, g * tiles / groups, (g + 1) * tiles / groups, tiles};
        kernel.run(a, chunk, scratch(kernel.scratch(a, chunk.last - chunk.first)));
    });
}

}  // namespace hotloop
