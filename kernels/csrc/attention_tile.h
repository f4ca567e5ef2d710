// attention, the work on one chunk: some tiles of queries of one head against all keys. Compiled once per instruction
// set; L is its policy of attention_lanes.h and A the arithmetic of its products.
//
// Queries lie across the lanes of a vector, kVectors vectors to a tile. Then scores are S^T [keys][queries] and outputs
// O^T [D][queries]: maximum, sum and rescaling of the softmax are plain vector operations, a key or a channel is a
// broadcast, and neither the number of keys nor the head size is padded. Only queries fill up to whole vectors.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "attention_kernel.h"
#include "attention_lanes.h"

namespace hotloop {
namespace {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Rows of accumulators of a micro-kernel; with Portable::kVectors and its likes they fill the registers.
constexpr int kRows = 6;

// Rows a power of two of bytes apart would fall into few cache sets.
inline int64_t spaced(int64_t elements) { return elements % 128 == 0 ? elements + 16 : elements; }

// x [B, T, H, D] at a head: row t is D values at `data + t * stride` bytes.
struct HeadRows {
    const char* data;
    int64_t stride;
    DType dtype;

    HeadRows(const Tensor& x, int64_t b, int64_t h)
        : data(static_cast<const char*>(x.data) + (b * x.stride[0] + h * x.stride[2]) * bytes_of(x.dtype)),
          stride(x.stride[1] * bytes_of(x.dtype)),
          dtype(x.dtype) {}
    const char* operator[](int64_t t) const { return data + t * stride; }
};

// --- The two products ------------------------------------------------------------------------------------------------

// A sum of many terms is taken in parts: its rounding error grows with the root of the count of terms in one part.
constexpr int64_t kPart = 160;

// s[r] = k[r] . q and peak = max(peak, s[r]), R rows (keys) of NV vectors.
template <class A, int R, int NV>
HOTLOOP_INLINE void score_rows(const typename A::Element* q, const typename A::Element* k, int64_t k_stride,
                               int64_t elements, float* s, float* peak) {
    using V = typename A::V;
    for (int64_t part = 0; part < elements; part += kPart) {
        const int64_t end = part + kPart < elements ? part + kPart : elements;
        V sum[R][NV];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int n = 0; n < NV; ++n) sum[r][n] = A::spread(0.0f);
        for (int64_t d = part; d < end; ++d) {
            typename A::X x[NV];
#pragma GCC unroll 8
            for (int n = 0; n < NV; ++n) x[n] = A::operand(q + (d * NV + n) * A::kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const typename A::X key = A::broadcast(k + r * k_stride + d);
#pragma GCC unroll 8
                for (int n = 0; n < NV; ++n) sum[r][n] = A::mac(sum[r][n], key, x[n]);
            }
        }
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) {
            V most = A::load(peak + n * A::kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                float* at = s + (r * NV + n) * A::kLanes;
                if (part > 0) sum[r][n] = A::add(A::load(at), sum[r][n]);
                most = A::max(sum[r][n], most);
                A::store(at, sum[r][n]);
            }
            if (end == elements) A::store(peak + n * A::kLanes, most);
        }
    }
}

// o[r] = alpha o[r] + sum over keys of v[key][r] p[key], R rows (channels) of NV vectors; `first`: o holds nothing yet.
// A block's keys are one part of the sum.
template <class A, int R, int NV>
HOTLOOP_INLINE void value_rows(const typename A::Element* p, const typename A::Element* v, int64_t v_stride,
                               int64_t elements, float* o, const float* alpha, bool first) {
    using V = typename A::V;
    V sum[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) sum[r][n] = A::spread(0.0f);
    for (int64_t j = 0; j < elements; ++j) {
        typename A::X x[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) x[n] = A::operand(p + (j * NV + n) * A::kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const typename A::X value = A::broadcast(v + j * v_stride + r);
#pragma GCC unroll 8
            for (int n = 0; n < NV; ++n) sum[r][n] = A::mac(sum[r][n], value, x[n]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) {
            const int at = (r * NV + n) * A::kLanes;
            if (!first) sum[r][n] = A::fma(A::load(o + at), A::load(alpha + n * A::kLanes), sum[r][n]);
            A::store(o + at, sum[r][n]);
        }
}

template <class A, int NV>
void scores(const typename A::Element* q, const typename A::Element* k, int64_t k_stride, int64_t elements,
            int64_t keys, float* s, float* peak) {
    constexpr int kRow = NV * A::kLanes;
    int64_t j = 0;
    for (; j + kRows <= keys; j += kRows)
        score_rows<A, kRows, NV>(q, k + j * k_stride, k_stride, elements, s + j * kRow, peak);
    for (; j + 2 <= keys; j += 2) score_rows<A, 2, NV>(q, k + j * k_stride, k_stride, elements, s + j * kRow, peak);
    if (j < keys) score_rows<A, 1, NV>(q, k + j * k_stride, k_stride, elements, s + j * kRow, peak);
}

// The head size is a multiple of 8: 6s and 4 or 2 are left.
template <class A, int NV>
void values(const typename A::Element* p, const typename A::Element* v, int64_t v_stride, int64_t elements,
            int64_t channels, float* o, const float* alpha, bool first) {
    constexpr int kRow = NV * A::kLanes;
    int64_t d = 0;
    for (; d + kRows <= channels; d += kRows)
        value_rows<A, kRows, NV>(p, v + d, v_stride, elements, o + d * kRow, alpha, first);
    if (d + 4 <= channels) {
        value_rows<A, 4, NV>(p, v + d, v_stride, elements, o + d * kRow, alpha, first);
        d += 4;
    }
    if (d < channels) value_rows<A, 2, NV>(p, v + d, v_stride, elements, o + d * kRow, alpha, first);
}

// --- The softmax between them ----------------------------------------------------------------------------------------

// s = scale s + mask, and its maximum.
template <class A, int NV>
void add_mask(float* s, const float* mask, int64_t keys, float scale, float* peak) {
    using V = typename A::V;
    V most[NV];
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) most[n] = A::spread(kMinusInfinity);
    for (int64_t j = 0; j < keys; ++j)
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) {
            const int64_t at = (j * NV + n) * A::kLanes;
            const V x = A::fma(A::load(s + at), A::spread(scale), A::load(mask + at));
            most[n] = A::max(x, most[n]);
            A::store(s + at, x);
        }
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) A::store(peak + n * A::kLanes, most[n]);
}

// What the softmax of a tile has seen so far: per query the largest score, the sum of exponentials relative to it, and
// the factor by which this block's larger maximum shrinks what was summed before.
struct Running {
    float *most, *sum, *alpha, *peak;
};

// s [keys][queries] becomes p = 2^(c (s - most)), as elements of the second product, in place.
template <class A, int NV>
void exponentials(float* s, int64_t keys, float c, const Running& running, bool first) {
    using V = typename A::V;
    V shift[NV], sum[NV], alpha[NV];
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) {
        const int at = n * A::kLanes;
        const V before = A::load(running.most + at), most = A::max(A::load(running.peak + at), before);
        // A query that may look at nothing so far has no maximum to subtract.
        shift[n] = A::where_is(most, kMinusInfinity, A::spread(0.0f), most);
        sum[n] = A::spread(0.0f);
        alpha[n] = A::mul(A::sub(before, shift[n]), A::spread(c));
        A::store(running.most + at, most);
    }
    if (!first) {
        exp2<A, 6>(alpha);
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) A::store(running.alpha + n * A::kLanes, alpha[n]);
    }
    constexpr int kRow = NV * A::kLanes;
    const auto row = [&](int64_t j, V(&p)[NV]) HOTLOOP_INLINE_LAMBDA {
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n)
            p[n] = A::mul(A::sub(A::load(s + j * kRow + n * A::kLanes), shift[n]), A::spread(c));
        exp2<A, A::kDegree>(p);
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) sum[n] = A::add(sum[n], p[n]);
    };
    if constexpr (A::kPerElement == 1) {
        for (int64_t j = 0; j < keys; ++j) {
            V p[NV];
            row(j, p);
#pragma GCC unroll 8
            for (int n = 0; n < NV; ++n) A::store(s + j * kRow + n * A::kLanes, p[n]);
        }
    } else {
        // Row j of pairs overwrites scores that were read: rows 2 j and 2 j + 1 are not before it.
        auto* pairs = reinterpret_cast<typename A::Element*>(s);
        for (int64_t j = 0; j < keys; j += 2) {
            V a[NV], b[NV];
            row(j, a);
            if (j + 1 < keys) {
                row(j + 1, b);
            } else {
#pragma GCC unroll 8
                for (int n = 0; n < NV; ++n) b[n] = A::spread(0.0f);
            }
#pragma GCC unroll 8
            for (int n = 0; n < NV; ++n) A::store_pair(pairs + j / 2 * kRow + n * A::kLanes, a[n], b[n]);
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) {
        float* total = running.sum + n * A::kLanes;
        A::store(total, first ? sum[n] : A::fma(A::load(total), alpha[n], sum[n]));
    }
}

// --- Rows in and out -------------------------------------------------------------------------------------------------

template <class L>
void widen_row(DType dtype, const char* in, float* out, int64_t n) {
    if (dtype == DType::f32) {
        std::memcpy(out, in, n * sizeof(float));
    } else if (dtype == DType::f16) {
        L::widen(reinterpret_cast<const Half*>(in), out, n);
    } else {
        const auto* row = reinterpret_cast<const Bfloat*>(in);
        for (int64_t i = 0; i < n; ++i) out[i] = to_float(row[i]);
    }
}

template <class L>
void narrow_row(DType dtype, const float* in, char* out, int64_t n) {
    if (dtype == DType::f32) {
        std::memcpy(out, in, n * sizeof(float));
    } else if (dtype == DType::f16) {
        L::narrow(in, reinterpret_cast<Half*>(out), n);
    } else {
        L::narrow(in, reinterpret_cast<Bfloat*>(out), n);
    }
}

// One row of the mask as what is added to scores.
template <class L>
void mask_row(DType dtype, const char* in, int64_t stride, float* out, int64_t n) {
    if (dtype == DType::u8) {
        const auto* row = reinterpret_cast<const uint8_t*>(in);
        for (int64_t i = 0; i < n; ++i) out[i] = row[i * stride] ? 0.0f : kMinusInfinity;
        return;
    }
    if (stride == 1) return widen_row<L>(dtype, in, out, n);
    const int64_t bytes = bytes_of(dtype);
    for (int64_t i = 0; i < n; ++i) widen_row<L>(dtype, in + i * stride * bytes, out + i, 1);
}

// [kLanes rows][columns] -> columns of kLanes, `row` floats apart.
template <class L>
HOTLOOP_INLINE void to_columns(const float* rows, int64_t stride, int64_t columns, float* out, int64_t row) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
        typename L::V x[4];
        L::load_columns(rows + c, stride, x);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) L::store(out + (c + i) * row, x[i]);
    }
    for (; c < columns; ++c)
        for (int i = 0; i < L::kLanes; ++i) out[c * row + i] = rows[i * stride + c];
}

// --- A chunk ---------------------------------------------------------------------------------------------------------

// Sizes of one chunk's buffers, in floats. A tile's row is as long as the widest tile's.
template <class L>
struct Sizes {
    static constexpr int64_t kTile = L::kVectors * L::kLanes;  // queries

    int64_t head, keys, tiles, sets;

    Sizes(const Attention& a, int64_t tiles_) : head(a.q.shape[3]), tiles(tiles_), sets(1 + a.segments) {
        // Scores of 24 KB stay in a first-level cache, keys and values of 256 KB in a second-level one.
        const int64_t by_scores = 24 * 1024 / (kTile * 4), by_head = 256 * 1024 / (head * 8);
        keys = by_scores < by_head ? by_scores : by_head;
        keys = (keys < 192 ? keys : 192) / 12 * 12;
        keys = keys < 24 ? 24 : keys;
    }
    int64_t key_row() const { return spaced(head); }
    int64_t mask_stride() const { return keys + 4; }
    int64_t row_buffer() const { return L::kLanes * (head > mask_stride() ? head : mask_stride()); }
    int64_t of_tile() const { return kTile * (head * (sets > 1 ? 3 : 2) + 6); }
    int64_t total() const { return tiles * of_tile() + 2 * keys * key_row() + 2 * keys * kTile + row_buffer() + 256; }
};

template <class A>
class ChunkOfTiles {
    using V = typename A::V;
    using Element = typename A::Element;
    static constexpr int64_t kTile = Sizes<A>::kTile;

  public:
    ChunkOfTiles(const Attention& attention, const AttentionChunk& chunk, float* scratch)
        : a_(attention), chunk_(chunk), size_(attention, chunk.last - chunk.first), D_(attention.q.shape[3]) {
        const auto take = [&](int64_t floats) {
            float* taken = scratch;
            scratch += (floats + 15) / 16 * 16;
            return taken;
        };
        k_ = reinterpret_cast<Element*>(take(size_.keys * size_.key_row()));
        v_ = reinterpret_cast<Element*>(take(size_.keys * size_.key_row()));
        s_ = take(size_.keys * kTile);
        mask_ = take(size_.keys * kTile);
        rows_ = take(size_.row_buffer());
        float* tiles = take(size_.tiles * size_.of_tile());
        for (int64_t t = 0; t < size_.tiles; ++t) tiles_[t] = make_tile(t, tiles + t * size_.of_tile());
    }

    void run() {
        for (int64_t t = 0; t < size_.tiles; ++t) load_queries(tiles_[t]);
        attend(a_.k, a_.v, nullptr);
        for (int i = 0; i < a_.segments; ++i) attend(a_.segment[i].k, a_.segment[i].v, &a_.segment[i].weight);
        for (int64_t t = 0; t < size_.tiles; ++t) store_outputs(tiles_[t]);
    }

  private:
    struct Tile {
        int64_t first, queries, vectors;  // vectors: of queries, the last one partly filled
        float *q, *o, *total;             // [D][vectors][kLanes]
        Running running;
        float *weight, *factor;  // of a segment; what a sum is yet to be multiplied by
    };

    // Whole vectors are dealt out evenly, so that no tile is nearly empty.
    Tile make_tile(int64_t t, float* base) const {
        const int64_t Tq = a_.q.shape[1], vectors = (Tq + A::kLanes - 1) / A::kLanes, at = chunk_.first + t;
        const int64_t begin = at * vectors / chunk_.tiles, end = (at + 1) * vectors / chunk_.tiles;
        Tile tile{};
        tile.first = begin * A::kLanes;
        tile.vectors = end - begin;
        tile.queries = (end * A::kLanes < Tq ? end * A::kLanes : Tq) - tile.first;
        const auto take = [&](int64_t floats) {
            float* taken = base;
            base += floats;
            return taken;
        };
        tile.q = take(kTile * D_);
        tile.o = take(kTile * D_);
        tile.total = size_.sets > 1 ? take(kTile * D_) : tile.o;
        tile.running = {take(kTile), take(kTile), take(kTile), take(kTile)};
        tile.weight = take(kTile);
        tile.factor = take(kTile);
        return tile;
    }

    // q as columns of elements; queries beyond the last are zero.
    void load_queries(const Tile& tile) {
        const HeadRows q(a_.q, chunk_.b, chunk_.h);
        const int64_t elements = D_ / A::kPerElement, row = tile.vectors * A::kLanes;
        const bool as_is = q.stride % 4 == 0 && a_.scale >= 0 && (A::kPerElement > 1 || q.dtype == DType::f32);
        for (int64_t n = 0; n < tile.vectors; ++n) {
            if (as_is && (n + 1) * A::kLanes <= tile.queries) {
                const auto* rows = reinterpret_cast<const float*>(q[tile.first + n * A::kLanes]);
                to_columns<A>(rows, q.stride / 4, elements, tile.q + n * A::kLanes, row);
                continue;
            }
            for (int64_t i = 0; i < A::kLanes; ++i) {
                float* to = rows_ + i * elements;
                const int64_t query = n * A::kLanes + i;
                if (query >= tile.queries) {
                    std::memset(to, 0, elements * sizeof(float));
                    continue;
                }
                const char* from = q[tile.first + query];
                if constexpr (A::kPerElement == 1) {
                    widen_row<A>(q.dtype, from, to, elements);
                } else {
                    std::memcpy(to, from, elements * sizeof(float));
                }
                // The maximum is taken before scaling: a negative scale changes the sign here.
                if (a_.scale < 0) flip_signs(to, elements);
            }
            to_columns<A>(rows_, elements, elements, tile.q + n * A::kLanes, row);
        }
    }

    static void flip_signs(float* elements, int64_t n) {
        const uint32_t signs = A::kPerElement == 1 ? 0x80000000u : 0x80008000u;
        for (int64_t i = 0; i < n; ++i) {
            uint32_t bits;
            std::memcpy(&bits, elements + i, 4);
            bits ^= signs;
            std::memcpy(elements + i, &bits, 4);
        }
    }

    void load_keys(const HeadRows& k, const HeadRows& v, int64_t first, int64_t keys) {
        const int64_t row = size_.key_row();
        if constexpr (A::kPerElement == 1) {
            for (int64_t j = 0; j < keys; ++j) {
                widen_row<A>(k.dtype, k[first + j], k_ + j * row, D_);
                widen_row<A>(v.dtype, v[first + j], v_ + j * row, D_);
            }
        } else {
            for (int64_t j = 0; j < keys; ++j) std::memcpy(k_ + j * row, k[first + j], D_ * sizeof(Bfloat));
            for (int64_t j = 0; j < keys; j += 2) {
                // Values of two keys side by side; beside the last of an odd number, zeros.
                const auto* a = reinterpret_cast<const uint16_t*>(v[first + j]);
                const auto* b = reinterpret_cast<const uint16_t*>(v[first + (j + 1 < keys ? j + 1 : j)]);
                const uint32_t some = j + 1 < keys ? 0xffffu : 0u;
                Element* to = v_ + j / 2 * row;
                for (int64_t d = 0; d < D_; ++d) to[d] = a[d] | (b[d] & some) << 16;
            }
        }
    }

    // Columns of the mask for one tile's queries: mask_ [keys][vectors][kLanes].
    void load_mask(const Tile& tile, int64_t first, int64_t keys) {
        const Tensor& m = a_.mask;
        const int64_t bytes = bytes_of(m.dtype), stride = size_.mask_stride(), row = tile.vectors * A::kLanes;
        const char* base = static_cast<const char*>(m.data) +
                           (chunk_.b * m.stride[0] + chunk_.h * m.stride[1] + first * m.stride[3]) * bytes;
        if (m.stride[2] == 0) {
            mask_row<A>(m.dtype, base, m.stride[3], rows_, keys);
            for (int64_t j = 0; j < keys; ++j)
                for (int64_t n = 0; n < tile.vectors; ++n)
                    A::store(mask_ + j * row + n * A::kLanes, A::spread(rows_[j]));
            return;
        }
        for (int64_t n = 0; n < tile.vectors; ++n) {
            for (int64_t i = 0; i < A::kLanes; ++i) {
                const int64_t query = n * A::kLanes + i;
                if (query < tile.queries)
                    mask_row<A>(m.dtype, base + (tile.first + query) * m.stride[2] * bytes, m.stride[3],
                                rows_ + i * stride, keys);
                else
                    std::memset(rows_ + i * stride, 0, keys * sizeof(float));
            }
            to_columns<A>(rows_, stride, keys, mask_ + n * A::kLanes, row);
        }
    }

    // One set of keys and values, with a softmax of its own; weight null: the first set, which is not weighted.
    void attend(const Tensor& keys, const Tensor& values, const Tensor* weight) {
        const int64_t Tk = keys.shape[1];
        const HeadRows k(keys, chunk_.b, chunk_.h), v(values, chunk_.b, chunk_.h);
        bool wanted = false;
        for (int64_t t = 0; t < size_.tiles; ++t) wanted |= load_weight(tiles_[t], weight);
        if (!wanted) return;
        for (int64_t first = 0; first < Tk; first += size_.keys) {
            const int64_t end = first + size_.keys < Tk ? first + size_.keys : Tk;
            load_keys(k, v, first, end - first);
            for (int64_t t = 0; t < size_.tiles; ++t) {
                const Tile& tile = tiles_[t];
                switch (tile.vectors) {
                    case 1:
                        block<1>(tile, first, end - first, weight);
                        break;
                    case 2:
                        block<2>(tile, first, end - first, weight);
                        break;
                    case 3:
                        block<3>(tile, first, end - first, weight);
                        break;
                    default:
                        block<4>(tile, first, end - first, weight);
                }
            }
        }
        for (int64_t t = 0; t < size_.tiles; ++t) finish(tiles_[t], weight);
    }

    // The tile's weights; false when all are 0.
    bool load_weight(const Tile& tile, const Tensor* weight) {
        if (!weight) return true;
        const auto* w = static_cast<const float*>(weight->data) + chunk_.b * weight->stride[0] +
                        chunk_.h * weight->stride[1] + tile.first * weight->stride[2];
        bool any = false;
        for (int64_t i = 0; i < tile.vectors * A::kLanes; ++i) {
            tile.weight[i] = i < tile.queries ? w[i * weight->stride[2]] : 0.0f;
            any |= tile.weight[i] != 0.0f;
        }
        return any;
    }

    template <int NV>
    void block(const Tile& tile, int64_t first, int64_t keys, const Tensor* weight) {
        if constexpr (NV <= A::kVectors) {
            const int64_t elements = D_ / A::kPerElement, pairs = (keys + A::kPerElement - 1) / A::kPerElement;
            const bool masked = !weight && a_.mask;
            const float scale = a_.scale < 0 ? -a_.scale : a_.scale;
            for (int n = 0; n < NV; ++n) {
                const int at = n * A::kLanes;
                A::store(tile.running.peak + at, A::spread(kMinusInfinity));
                if (first == 0) A::store(tile.running.most + at, A::spread(kMinusInfinity));
            }
            scores<A, NV>(reinterpret_cast<const Element*>(tile.q), k_, size_.key_row(), elements, keys, s_,
                          tile.running.peak);
            if (masked) {
                load_mask(tile, first, keys);
                add_mask<A, NV>(s_, mask_, keys, scale, tile.running.peak);
            }
            exponentials<A, NV>(s_, keys, masked ? kLog2e : scale * kLog2e, tile.running, first == 0);
            hotloop::values<A, NV>(reinterpret_cast<const Element*>(s_), v_, size_.key_row(), pairs, D_, tile.o,
                                   tile.running.alpha, first == 0);
        }
    }

    // Normalise; weigh; add. A query whose weight is 0 keeps every bit, whatever the segment holds.
    void finish(const Tile& tile, const Tensor* weight) {
        const int64_t row = tile.vectors * A::kLanes;
        for (int64_t n = 0; n < tile.vectors; ++n) {
            const int64_t at = n * A::kLanes;
            const V sum = A::load(tile.running.sum + at), w = weight ? A::load(tile.weight + at) : A::spread(1.0f);
            // No key to look at: zeros.
            const V factor = A::where_is(sum, 0.0f, A::spread(0.0f), A::div(w, sum));
            if (size_.sets == 1) {
                A::store(tile.factor + at, factor);  // store_outputs multiplies
                continue;
            }
            A::store(tile.factor + at, A::spread(1.0f));
            for (int64_t i = at; i < D_ * row; i += row) {
                const V o = A::load(tile.o + i);
                if (weight) {
                    const V total = A::load(tile.total + i);
                    A::store(tile.total + i, A::where_is(w, 0.0f, total, A::fma(o, factor, total)));
                } else {
                    A::store(tile.total + i, A::mul(o, factor));
                }
            }
        }
    }

    void store_outputs(const Tile& tile) {
        const HeadRows out(a_.out, chunk_.b, chunk_.h);
        const int64_t row = tile.vectors * A::kLanes;
        for (int64_t n = 0; n < tile.vectors; ++n) {
            const int64_t first = tile.first + n * A::kLanes, left = tile.first + tile.queries - first;
            const bool direct = out.dtype == DType::f32 && left >= A::kLanes;
            auto* rows = direct ? reinterpret_cast<float*>(const_cast<char*>(out[first])) : rows_;
            const int64_t stride = direct ? out.stride / 4 : D_;
            const V factor = A::load(tile.factor + n * A::kLanes);
            for (int64_t d = 0; d < D_; d += 4) {
                V x[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) x[i] = A::mul(A::load(tile.total + (d + i) * row + n * A::kLanes), factor);
                A::store_columns(rows + d, stride, x);
            }
            if (direct) continue;
            for (int64_t i = 0; i < A::kLanes && i < left; ++i)
                narrow_row<A>(out.dtype, rows_ + i * D_, const_cast<char*>(out[first + i]), D_);
        }
    }

    const Attention& a_;
    const AttentionChunk& chunk_;
    const Sizes<A> size_;
    const int64_t D_;
    Element *k_, *v_;
    float *s_, *mask_, *rows_;
    Tile tiles_[kMaxTiles];
};

template <class A>
struct KernelOf {
    static int64_t scratch(const Attention& a, int64_t tiles) { return Sizes<A>(a, tiles).total(); }
    static void run(const Attention& a, const AttentionChunk& chunk, float* scratch) {
        ChunkOfTiles<A>(a, chunk, scratch).run();
    }
    static constexpr AttentionKernel table() { return {A::kLanes, A::kVectors, &scratch, &run}; }
};

}  // namespace
}  // namespace hotloop
