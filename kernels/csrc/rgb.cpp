// rgb: network pixels to bytes and back, with a resize on the way in.
//
// What:    pack: float [N, C, h, w] in [-1, 1] -> bytes [N, h, w, C]; unpack: the way back, from a picture of any size.
// Layout:  every stride free; floats of float32, float16 or bfloat16.
// Limit:   memory; pack reads 4 bytes and writes 1 per value. A resize costs a product for every byte of the picture, and
//          is done line by line while unpacking, so that no resized picture is written in between.
// Order:   pack halves, adds 0.5, clamps, scales by 255 and rounds half to even, each in float32: the bytes that the
//          baseline's image processor gives. unpack without a resize is a table of 256 values.

#include <algorithm>
#include <atomic>
#include <vector>

#include "ops.h"
#include "rgb_value.h"
#include "rows.h"
#include "threads.h"

namespace hotloop {
namespace {

template <class T>
int64_t pack(const RgbPack& op) {
    const int64_t channels = op.in.shape[1], width = op.in.shape[3];
    std::atomic<int64_t> bad{0};
    // Lines of pixels.
    parallel_ranges(op.in.shape[0] * op.in.shape[2], channels * width, [&](int64_t first, int64_t end) {
        float* copy = scratch(width);
        int64_t not_finite = 0;
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            for (int64_t line = first; line < end; ++line) {
                const int64_t n = line / op.in.shape[2], y = line % op.in.shape[2];
                const T* from = static_cast<const T*>(op.in.data) + n * op.in.stride[0] + y * op.in.stride[2];
                uint8_t* to = static_cast<uint8_t*>(op.out.data) + n * op.out.stride[0] + y * op.out.stride[1];
                for (int64_t c = 0; c < channels; ++c) {
                    const float* x = load(from + c * op.in.stride[1], op.in.stride[3], width, copy);
                    // Bytes side by side first: that much vectorises.
                    constexpr int64_t kBlock = 1024;
                    uint8_t bytes[kBlock];
                    for (int64_t start = 0; start < width; start += kBlock) {
                        const int64_t count = std::min(kBlock, width - start);
                        int wrong = 0;
                        for (int64_t i = 0; i < count; ++i) {
                            wrong += !is_finite(x[start + i]);
                            bytes[i] = byte_of(x[start + i]);
                        }
                        not_finite += wrong;
                        uint8_t* pixel = to + c * op.out.stride[3] + start * op.out.stride[2];
                        for (int64_t i = 0; i < count; ++i) pixel[i * op.out.stride[2]] = bytes[i];
                    }
                }
            }
        });
        bad += not_finite;
    });
    return bad;
}

// The taps of all outputs of an axis, one after another.
struct Taps {
    std::vector<int64_t> begin, index;
    std::vector<float> weight;

    explicit Taps(const Axis& axis) : begin(1) {
        for (int o = 0; o < axis.out; ++o) {
            for (int i = 0; i < axis.count(o); ++i) {
                index.push_back(axis.index(o, i));
                weight.push_back(axis.weight(o, i));
            }
            begin.push_back(static_cast<int64_t>(index.size()));
        }
    }
};

template <class T>
void unpack(const RgbUnpack& op) {
    const int64_t channels = op.out.shape[1], height = op.out.shape[2], width = op.out.shape[3];
    const Axis down_axis = axis_of(op, 1), across_axis = axis_of(op, 2);
    const bool same_size = down_axis.in == height && across_axis.in == width;
    const Taps down(down_axis), across(across_axis);
    const int64_t values = channels * width;
    float unit[256];
    for (int v = 0; v < 256; ++v) unit[v] = unit_of(static_cast<float>(v));

    const int64_t work = values + op.in.shape[1] / std::max<int64_t>(height, 1) * op.in.shape[2] * channels;
    parallel_ranges(op.out.shape[0] * height, work, [&](int64_t first, int64_t end) {
        // The last two lines of the picture that were resampled across: neighbours share them.
        float *sum = scratch(3 * values), *kept[2] = {sum + values, sum + 2 * values};
        int64_t kept_line[2] = {-1, -1};
        const auto line_across = [&](int64_t n, int64_t y) {
            float* row = kept[y % 2];
            if (kept_line[y % 2] == n * down_axis.in + y) return row;
            kept_line[y % 2] = n * down_axis.in + y;
            const uint8_t* line = static_cast<const uint8_t*>(op.in.data) + n * op.in.stride[0] + y * op.in.stride[1];
            for (int64_t x = 0; x < width; ++x)
                for (int64_t c = 0; c < channels; ++c) {
                    float value = 0.0f;
                    for (int64_t i = across.begin[x]; i < across.begin[x + 1]; ++i)
                        value += across.weight[i] *
                                 static_cast<float>(line[across.index[i] * op.in.stride[2] + c * op.in.stride[3]]);
                    row[c * width + x] = value;
                }
            return row;
        };
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            for (int64_t line = first; line < end; ++line) {
                const int64_t n = line / height, y = line % height;
                T* to = static_cast<T*>(op.out.data) + n * op.out.stride[0] + y * op.out.stride[2];
                if (same_size) {
                    const uint8_t* from =
                        static_cast<const uint8_t*>(op.in.data) + n * op.in.stride[0] + y * op.in.stride[1];
                    for (int64_t c = 0; c < channels; ++c)
                        store(to + c * op.out.stride[1], op.out.stride[3], width, [&](int64_t x) HOTLOOP_INLINE_LAMBDA {
                            return unit[from[x * op.in.stride[2] + c * op.in.stride[3]]];
                        });
                    continue;
                }
                std::fill(sum, sum + values, 0.0f);
                for (int64_t j = down.begin[y]; j < down.begin[y + 1]; ++j) {
                    const float* row = line_across(n, down.index[j]);
                    const float weight = down.weight[j];
                    HOTLOOP_NO_DEPENDENCE
                    for (int64_t i = 0; i < values; ++i) sum[i] += weight * row[i];
                }
                for (int64_t c = 0; c < channels; ++c) {
                    const float* v = sum + c * width;
                    store(to + c * op.out.stride[1], op.out.stride[3], width,
                          [=](int64_t x) HOTLOOP_INLINE_LAMBDA { return unit_of(v[x]); });
                }
            }
        });
    });
}

}  // namespace

int64_t rgb_pack(const RgbPack& op) {
    int64_t bad = 0;
    with_type(op.in.dtype, [&](auto* type) { bad = pack<std::remove_pointer_t<decltype(type)>>(op); });
    return bad;
}

void rgb_unpack(const RgbUnpack& op) {
    with_type(op.out.dtype, [&](auto* type) { unpack<std::remove_pointer_t<decltype(type)>>(op); });
}

void rgb_unpack_by_value(const RgbUnpack& op) {
    const auto* size = op.out.shape;
    float* out = static_cast<float*>(op.out.data);
    for (int64_t i = 0; i < size_of(op.out); ++i)
        out[i] = resized_value(op, i / size[3] / size[2] / size[1], i / size[3] / size[2] % size[1],
                               static_cast<int>(i / size[3] % size[2]), static_cast<int>(i % size[3]));
}

}  // namespace hotloop
