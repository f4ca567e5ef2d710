// Where things lie: the index maps of the CUDA attention. Constant functions of both sides, so the CPU tests call them.
#pragma once

#include <cstdint>

#include "common.h"

namespace hotloop::maps {

// --- Tiles in shared memory, read by ldmatrix ---

// A row is a whole number of chunks of 16 bytes, with no padding. ldmatrix reads one chunk of eight successive rows at
// once; they must fall into the eight 16-byte groups of banks. Rows of an odd number of chunks do so by themselves.
// Otherwise the chunk number is twisted by the row, within the largest power of two (at most 8) that divides the row.

HOTLOOP_HD constexpr int chunk_group(int chunks) {
    const int lowest_bit = chunks & -chunks;
    return lowest_bit < 8 ? lowest_bit : 8;
}

// Equal for rows 8 apart, so a warp keeps its twist while it walks down a tile.
HOTLOOP_HD constexpr int twist(int row, int chunks) {
    const int group = chunk_group(chunks);
    return (row * group >> 3) & (group - 1);
}

HOTLOOP_HD constexpr int chunk_offset(int row, int chunk, int chunks) {
    return (row * chunks + (chunk ^ twist(row, chunks))) * 16;  // bytes
}

// chunk_offset for a lane that walks: from its own row by multiples of 8 rows, and from its own chunk, one of the first
// kWidth, by multiples of kWidth chunks. The lane's part is computed once; with a twist below kWidth the rest is
// constant.
template <int kChunks, int kWidth>
struct Cursor {
    uint32_t base, high;

    HOTLOOP_HD constexpr Cursor(int row, int chunk)
        : base(uint32_t((row * kChunks + (chunk ^ (twist(row, kChunks) & (kWidth - 1)))) * 16)),
          high(uint32_t((twist(row, kChunks) & ~(kWidth - 1)) * 16)) {}

    HOTLOOP_HD constexpr uint32_t at(int rows, int chunks) const {
        const uint32_t start = base + uint32_t(rows * kChunks * 16);
        return chunk_group(kChunks) > kWidth ? start + (uint32_t(chunks * 16) ^ high) : start + uint32_t(chunks * 16);
    }
};

// --- Fragments of mma.m16n8k16, by lane ---

// C holds (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1).
// A holds pairs of columns: (row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8): two C tiles
// side by side, packed to 16 bits, are one A. B holds pairs of rows: (column, row), (column + 8, row).
HOTLOOP_HD constexpr int fragment_row(int lane) { return lane >> 2; }
HOTLOOP_HD constexpr int fragment_column(int lane) { return 2 * (lane & 3); }

// The row and chunk whose address a lane gives to ldmatrix.x4.
struct Place {
    int row, chunk;
};
// 16 rows x 16 columns, as A holds them: Q and P; transposed, B of V.
HOTLOOP_HD constexpr Place place_a(int lane) { return {lane & 15, lane >> 4}; }
// 16 keys x 16 columns, B of K: the keys are its columns.
HOTLOOP_HD constexpr Place place_b(int lane) { return {(lane & 7) | (lane >> 1 & 8), lane >> 3 & 1}; }
// 8 keys x 32 columns: two steps of B.
HOTLOOP_HD constexpr Place place_b_narrow(int lane) { return {lane & 7, lane >> 3}; }

// --- Hopper: 128-byte swizzled panels, written by TMA and read by wgmma ---

// A panel holds 64 columns of 16 bits of every row: 128 bytes a row, 1,024-byte atoms of eight rows.
constexpr int kPanelColumns = 64;
constexpr int kPanelRow = 128;    // bytes
constexpr int kPanelAtom = 1024;  // bytes

// The 16-byte chunk of an address is XORed with its row's number in the atom: bits 4-6 with bits 7-9.
HOTLOOP_HD constexpr uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 3 & 0x70); }

// The matrix descriptor of wgmma: bits 0-13 start, 16-29 leading offset, 32-45 stride offset (all in 16 bytes), 62-63
// the swizzle (1: 128 bytes). The tile's base must be a multiple of 1,024 bytes.
HOTLOOP_HD constexpr uint64_t descriptor(uint32_t start, uint32_t leading, uint32_t stride) {
    return uint64_t(start >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 |
           uint64_t(stride >> 4 & 0x3fff) << 32 | uint64_t(1) << 62;
}

// Rows x 16 columns from column `k`, the columns contiguous (Q and K): eight rows to the next eight are one atom.
HOTLOOP_HD constexpr uint64_t descriptor_k_major(uint32_t tile, int rows, int k) {
    const uint32_t panel = uint32_t(k / kPanelColumns * rows * kPanelRow);
    return descriptor(tile + panel + uint32_t(k % kPanelColumns * 2), 16, kPanelAtom);
}

// 16 rows (keys) from `row` x all columns, the columns contiguous but the rows summed over (V): the leading offset
// leads to the next 64 columns, the stride to the next eight rows.
HOTLOOP_HD constexpr uint64_t descriptor_mn_major(uint32_t tile, int rows, int row) {
    return descriptor(tile + uint32_t(row * kPanelRow), uint32_t(rows * kPanelRow), kPanelAtom);
}

}  // namespace hotloop::maps
