// group_norm_silu: y = (x - mean) / sqrt(variance + eps) * weight + bias over groups of channels, then y sigmoid(y).
//
// Layout:  x and out [N, C, h, w], every stride free: NHWC is the case of a channel stride of 1. Groups are of
//          neighbouring channels. float32, float16 or bfloat16.
// Limit:   memory: x is read twice, for the statistics and to apply them, and out is written once.
// Order:   both layouts go in tiles of fixed size: a tile's mean and squares in float32, tiles together in float64, so
//          that 262,144 pixels lose no digits; the same bits on every instruction set and for every count of threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "functions.h"
#include "ops.h"
#include "rows.h"
#include "threads.h"

namespace hotloop {
namespace {

// 16 KB of floats: a tile is read again while it is in L1.
constexpr int64_t kTile = 4096;

// Of some values: how many, their mean, and the sum of the squares of their distances from it.
struct Moments {
    double count = 0, mean = 0, squares = 0;
};

// Chan, Golub & LeVeque 1979, for many parts at once.
class Union {
  public:
    void add(const Moments& part) {
        count_ += part.count;
        sum_ += part.count * part.mean;
    }
    double mean() const { return sum_ / count_; }
    // The parts again, once all were added.
    void add_squares(const Moments& part, double mean) {
        squares_ += part.squares + part.count * (part.mean - mean) * (part.mean - mean);
    }
    Moments moments() const { return {count_, mean(), squares_}; }

  private:
    double count_ = 0, sum_ = 0, squares_ = 0;
};

template <class Part>
Moments together(int64_t count, const Part& part) {
    Union all;
    for (int64_t i = 0; i < count; ++i) all.add(part(i));
    const double mean = all.mean();
    for (int64_t i = 0; i < count; ++i) all.add_squares(part(i), mean);
    return all.moments();
}

HOTLOOP_INLINE Moments moments_of(const float* x, int64_t n) {
    const float mean = sum_of(n, [=](int64_t i) HOTLOOP_INLINE_LAMBDA { return x[i]; }) / static_cast<float>(n);
    const float squares = sum_of(n, [=](int64_t i) HOTLOOP_INLINE_LAMBDA { return (x[i] - mean) * (x[i] - mean); });
    return {static_cast<double>(n), mean, squares};
}

// True where an image's lines follow one another without a gap: it is one line.
bool is_one_line(const Tensor& t) { return t.shape[2] == 1 || t.stride[2] == t.shape[3] * t.stride[3]; }

int64_t offset_of(const Tensor& t, int64_t pixel) {
    return pixel / t.shape[3] * t.stride[2] + pixel % t.shape[3] * t.stride[3];
}

template <class T>
struct Op {
    const GroupNormSilu& op;
    const int64_t images = op.x.shape[0], channels = op.x.shape[1], pixels = op.x.shape[2] * op.x.shape[3];
    const int64_t groups = op.groups, width = channels / groups;  // width: channels of a group
    std::vector<float> weight = std::vector<float>(channels), bias = std::vector<float>(channels);

    explicit Op(const GroupNormSilu& op) : op(op) {
        for (int64_t c = 0; c < channels; ++c) {
            weight[c] = to_float(static_cast<const T*>(op.weight.data)[c * op.weight.stride[0]]);
            bias[c] = to_float(static_cast<const T*>(op.bias.data)[c * op.bias.stride[0]]);
        }
    }

    const T* in(int64_t image, int64_t channel) const {
        return static_cast<const T*>(op.x.data) + image * op.x.stride[0] + channel * op.x.stride[1];
    }
    T* out(int64_t image, int64_t channel) const {
        return static_cast<T*>(op.out.data) + image * op.out.stride[0] + channel * op.out.stride[1];
    }
    float scale_of(const Moments& group) const {
        return static_cast<float>(1.0 / std::sqrt(group.squares / group.count + static_cast<double>(op.eps)));
    }

    template <class Value>
    HOTLOOP_INLINE void put(T* to, int64_t stride, int64_t n, const Value& normalised) const {
        if (op.silu) {
            store(to, stride, n, [=](int64_t i) HOTLOOP_INLINE_LAMBDA { return silu(normalised(i)); });
        } else {
            store(to, stride, n, normalised);
        }
    }

    // A channel's pixels lie together: one task for each image and group.
    void by_channels() const;
    // A pixel's channels lie together: tasks of pixels, once for the statistics, once to apply them.
    void by_pixels() const;
};

template <class T>
void Op<T>::by_channels() const {
    const int64_t lines = is_one_line(op.x) && is_one_line(op.out) ? 1 : op.x.shape[2], line = pixels / lines;
    const int64_t tiles = (line + kTile - 1) / kTile;  // of a line
    const int64_t of_channel = lines * tiles, of_group = width * of_channel;

    parallel_ranges(images * groups, width * pixels, [&](int64_t first, int64_t end) {
        float copy[kTile];
        std::vector<Moments> parts(of_group);
        for (int64_t task = first; task < end; ++task) {
            const int64_t image = task / groups, channel = task % groups * width;
            // visit(x, n, c, y, start) for every tile: n floats of channel c, line y, from pixel `start`.
            const auto tile = [&](int64_t i, const auto& visit) HOTLOOP_INLINE_LAMBDA {
                const int64_t c = channel + i / of_channel, y = i / tiles % lines, start = i % tiles * kTile;
                const int64_t n = std::min(kTile, line - start);
                const T* from = in(image, c) + y * op.x.stride[2] + start * op.x.stride[3];
                visit(load(from, op.x.stride[3], n, copy), n, c, y, start);
            };

            // Statistics.
            with_isa([&]() HOTLOOP_INLINE_LAMBDA {
                for (int64_t i = 0; i < of_group; ++i)
                    tile(i, [&](const float* x, int64_t n, int64_t, int64_t, int64_t)
                                HOTLOOP_INLINE_LAMBDA { parts[i] = moments_of(x, n); });
            });
            const Moments group = together(of_group, [&](int64_t i) { return parts[i]; });
            const float mean = static_cast<float>(group.mean), scale = scale_of(group);

            // Apply.
            with_isa([&]() HOTLOOP_INLINE_LAMBDA {
                for (int64_t i = 0; i < of_group; ++i)
                    tile(i, [&](const float* x, int64_t n, int64_t c, int64_t y, int64_t start) HOTLOOP_INLINE_LAMBDA {
                        const float factor = scale * weight[c], b = bias[c];
                        put(out(image, c) + y * op.out.stride[2] + start * op.out.stride[3], op.out.stride[3], n,
                            [=](int64_t p) HOTLOOP_INLINE_LAMBDA { return (x[p] - mean) * factor + b; });
                    });
            });
        }
    });
}

// Of a tile of pixels, for every channel: the first value, and what the distances of all values from it add up to. A mean
// far from zero costs no digits.
struct TileSums {
    float *origin, *sum, *squares;
};

// Eight pixels a turn, so that sums in memory are few beside the values.
template <class T, class Pixel>
HOTLOOP_INLINE void add_up(const TileSums& sums, int64_t channels, int64_t pixels, const Pixel& pixel) {
    float *HOTLOOP_RESTRICT origin = sums.origin, *HOTLOOP_RESTRICT sum = sums.sum;
    float* HOTLOOP_RESTRICT squares = sums.squares;
    const T* first = pixel(0);
    for (int64_t c = 0; c < channels; ++c) {
        origin[c] = to_float(first[c]);
        sum[c] = squares[c] = 0.0f;
    }
    int64_t p = 0;
    for (; p + 8 <= pixels; p += 8) {
        const T *x0 = pixel(p), *x1 = pixel(p + 1), *x2 = pixel(p + 2), *x3 = pixel(p + 3);
        const T *x4 = pixel(p + 4), *x5 = pixel(p + 5), *x6 = pixel(p + 6), *x7 = pixel(p + 7);
        HOTLOOP_NO_DEPENDENCE
        for (int64_t c = 0; c < channels; ++c) {
            const float o = origin[c];
            const float d0 = to_float(x0[c]) - o, d1 = to_float(x1[c]) - o;
            const float d2 = to_float(x2[c]) - o, d3 = to_float(x3[c]) - o;
            const float d4 = to_float(x4[c]) - o, d5 = to_float(x5[c]) - o;
            const float d6 = to_float(x6[c]) - o, d7 = to_float(x7[c]) - o;
            sum[c] += ((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7));
            squares[c] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7));
        }
    }
    for (; p < pixels; ++p) {
        const T* x = pixel(p);
        HOTLOOP_NO_DEPENDENCE
        for (int64_t c = 0; c < channels; ++c) {
            const float d = to_float(x[c]) - origin[c];
            sum[c] += d;
            squares[c] += d * d;
        }
    }
}

template <class T>
void Op<T>::by_pixels() const {
    // Large enough that a tile's sums are few beside its values, small enough for several tasks at 8 x 8.
    const int64_t per_tile = std::max(std::clamp<int64_t>(16 * kTile / channels, 16, 64), pixels / 1024);
    const int64_t tiles = (pixels + per_tile - 1) / per_tile;  // of an image
    const auto start = [=](int64_t tile) { return tile * pixels / tiles; };
    std::vector<float> parts(images * tiles * 3 * channels);
    const auto part = [&](int64_t image, int64_t tile) {
        float* of_tile = parts.data() + (image * tiles + tile) * 3 * channels;
        return TileSums{of_tile, of_tile + channels, of_tile + 2 * channels};
    };

    // Statistics.
    parallel_ranges(images * tiles, per_tile * channels, [&](int64_t first, int64_t end) {
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            for (int64_t i = first; i < end; ++i) {
                const int64_t image = i / tiles, begin = start(i % tiles);
                const T* x = in(image, 0);
                add_up<T>(part(image, i % tiles), channels, start(i % tiles + 1) - begin,
                          [&, x](int64_t p) HOTLOOP_INLINE_LAMBDA { return x + offset_of(op.x, begin + p); });
            }
        });
    });

    // Mean and factor of every channel of every image: tiles together along the channels, then channels to groups.
    std::vector<float> means(images * channels), factors(images * channels);
    std::vector<double> of_channel(2 * channels);
    double *HOTLOOP_RESTRICT mean = of_channel.data(), *HOTLOOP_RESTRICT squares = mean + channels;
    for (int64_t image = 0; image < images; ++image) {
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            std::fill(mean, mean + 2 * channels, 0.0);
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const TileSums sums = part(image, tile);
                const auto n = static_cast<double>(start(tile + 1) - start(tile));
                HOTLOOP_NO_DEPENDENCE
                for (int64_t c = 0; c < channels; ++c)
                    mean[c] += n * static_cast<double>(sums.origin[c]) + static_cast<double>(sums.sum[c]);
            }
            for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<double>(pixels);
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const TileSums sums = part(image, tile);
                const auto n = static_cast<double>(start(tile + 1) - start(tile));
                const double share = 1.0 / n;
                HOTLOOP_NO_DEPENDENCE
                for (int64_t c = 0; c < channels; ++c) {
                    const double away = static_cast<double>(sums.sum[c]) * share;
                    const double inside = static_cast<double>(sums.squares[c]) - away * away * n;
                    const double distance = static_cast<double>(sums.origin[c]) + away - mean[c];
                    squares[c] += (inside > 0.0 ? inside : 0.0) + distance * distance * n;
                }
            }
        });
        for (int64_t g = 0; g < groups; ++g) {
            const Moments all = together(width, [=](int64_t i) {
                return Moments{static_cast<double>(pixels), mean[g * width + i], squares[g * width + i]};
            });
            const float scale = scale_of(all);
            for (int64_t c = g * width; c < (g + 1) * width; ++c) {
                means[image * channels + c] = static_cast<float>(all.mean);
                factors[image * channels + c] = scale * weight[c];
            }
        }
    }

    // Apply.
    parallel_ranges(images * pixels, channels, [&](int64_t first, int64_t end) {
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            for (int64_t i = first; i < end; ++i) {
                const int64_t image = i / pixels, p = i % pixels;
                const float *mean = &means[image * channels], *factor = &factors[image * channels], *b = bias.data();
                const T* x = in(image, 0) + offset_of(op.x, p);
                put(out(image, 0) + offset_of(op.out, p), op.out.stride[1], channels,
                    [=](int64_t c) HOTLOOP_INLINE_LAMBDA { return (to_float(x[c]) - mean[c]) * factor[c] + b[c]; });
            }
        });
    });
}

}  // namespace

void group_norm_silu(const GroupNormSilu& op) {
    with_type(op.x.dtype, [&](auto* type) {
        const Op<std::remove_pointer_t<decltype(type)>> run(op);
        if (size_of(op.x) == 0) return;
        if (op.x.stride[1] == 1 && op.x.shape[1] > 1) {
            run.by_pixels();
        } else {
            run.by_channels();
        }
    });
}

}  // namespace hotloop
