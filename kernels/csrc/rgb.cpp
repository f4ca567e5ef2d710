// rgb: network pixels to bytes and back.
//
// What:    pack: float [N, C, h, w] in [-1, 1] -> bytes [N, h, w, C]; unpack: the way back.
// Limit:   memory; pack reads 4 bytes and writes 1 per value.
// Order:   pack halves, adds 0.5, clamps, scales by 255 and rounds half to even, each in float32: the bytes that the
//          baseline's image processor gives. unpack is a table of 256 values.

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "common.h"
#include "ops.h"

namespace hotloop {
namespace {

constexpr int64_t kBlock = 1024;

// Adding and taking away 1.5 * 2^23 rounds half to even, without a call, on every instruction set.
constexpr float kRound = 12582912.0f;

HOTLOOP_INLINE bool pack_image(const float* in, uint8_t* out, int64_t channels, int64_t pixels) {
    alignas(64) uint8_t bytes[kBlock];
    bool finite = true;
    for (int64_t start = 0; start < pixels; start += kBlock) {
        const int64_t n = std::min(kBlock, pixels - start);
        for (int64_t c = 0; c < channels; ++c) {
            // Quantise.
            const float* x = in + c * pixels + start;
            int bad = 0;
            for (int64_t i = 0; i < n; ++i) {
                bad |= !(std::fabs(x[i]) <= FLT_MAX);
                float v = x[i] * 0.5f + 0.5f;
                v = v > 0.0f ? v : 0.0f;
                v = v < 1.0f ? v : 1.0f;
                bytes[i] = static_cast<uint8_t>(static_cast<int>((v * 255.0f + kRound) - kRound));
            }
            finite = finite && !bad;
            // Interleave.
            uint8_t* pixel = out + start * channels + c;
            for (int64_t i = 0; i < n; ++i) pixel[i * channels] = bytes[i];
        }
    }
    return finite;
}

}  // namespace

bool rgb_pack(Images<const float> in, uint8_t* out, int64_t images, int64_t channels, int64_t pixels) {
    bool finite = true;
    with_isa([&]() HOTLOOP_INLINE_LAMBDA {
        for (int64_t n = 0; n < images; ++n)
            finite = pack_image(in[n], out + n * channels * pixels, channels, pixels) && finite;
    });
    return finite;
}

void rgb_unpack(const uint8_t* in, float* out, int64_t images, int64_t channels, int64_t pixels) {
    float value[256];
    for (int v = 0; v < 256; ++v) value[v] = static_cast<float>(v) / 255.0f * 2.0f - 1.0f;
    for (int64_t n = 0; n < images; ++n)
        for (int64_t c = 0; c < channels; ++c) {
            const uint8_t* pixel = in + n * channels * pixels + c;
            float* x = out + (n * channels + c) * pixels;
            for (int64_t i = 0; i < pixels; ++i) x[i] = value[pixel[i * channels]];
        }
}

}  // namespace hotloop
