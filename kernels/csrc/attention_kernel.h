// attention: what the instruction sets' kernels offer to the scheduler in attention.cpp.
#pragma once

#include <cstdint>

#include "ops.h"

namespace hotloop {

constexpr int kMaxTiles = 32;  // of a chunk

// Tiles first..last of the `tiles` that cover the queries of head h of batch entry b.
struct AttentionChunk {
    int64_t b, h, first, last, tiles;
};

struct AttentionKernel {
    int lanes, vectors;                                   // queries per vector, vectors per tile at most
    int64_t (*scratch)(const Attention&, int64_t tiles);  // floats that a chunk of so many tiles needs
    void (*run)(const Attention&, const AttentionChunk&, float* scratch);
};

extern const AttentionKernel kAttentionAvx2;
extern const AttentionKernel kAttentionAvx512;
extern const AttentionKernel kAttentionAvx512Bf16;  // every tensor bfloat16

}  // namespace hotloop
