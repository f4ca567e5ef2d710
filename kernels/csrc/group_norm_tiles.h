// How the CUDA group norm splits its work: pixels into tiles, a block's threads into lines of packs of channels.
#pragma once

#include <cstdint>

#include "common.h"

namespace hotloop {

struct TileRange {
    int begin, end;  // pixels

    HOTLOOP_HD float count() const { return static_cast<float>(end - begin); }
};

// Tiles of an image: enough to fill a GPU from 16 x 16 on, and few beside their pixels, for every block reads the moments
// of all of them.
HOTLOOP_HD inline int tiles_of(int pixels) {
    const int few = pixels / 4 < 64 ? pixels / 4 : 64, many = pixels / 256 < 256 ? pixels / 256 : 256;
    const int tiles = few > many ? few : many;
    return tiles < 1 ? 1 : tiles;
}

// Tiles differ by at most one pixel, and none is empty while there are as many pixels as tiles.
HOTLOOP_HD inline TileRange tile_range(int tile, int tiles, int pixels) {
    return {static_cast<int>(static_cast<int64_t>(tile) * pixels / tiles),
            static_cast<int>(static_cast<int64_t>(tile + 1) * pixels / tiles)};
}

// A block of threads over packs of channels: `lines` pixels at a time, each by `packs_at_once` threads.
struct PackGrid {
    int packs, packs_at_once, lines;

    HOTLOOP_HD PackGrid(int channels, int pack, int block)
        : packs(channels / pack),
          packs_at_once(packs < block ? (packs > 0 ? packs : 1) : block),
          lines(block / packs_at_once) {}

    HOTLOOP_HD int threads() const { return packs_at_once * lines; }
    HOTLOOP_HD int pack(int thread) const { return thread % packs_at_once; }
    HOTLOOP_HD int line(int thread) const { return thread / packs_at_once; }
};

}  // namespace hotloop
