// The operators: pointers, sizes and strides in, no framework types. Arguments were checked in <op>.py.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace hotloop {

// The state holds x and K saved tensors: K + 1 rows. An update matrix has two more columns: d and z.
constexpr int kMaxStates = 8;

struct CfgStep {
    int64_t images, channels, pixels;  // pixels = h w
    int states;                        // K + 1 <= kMaxStates
    Images<float> state[kMaxStates];   // [K+1][N][C h w], updated in place
    Images<const float> m_c, m_u, z, mask, known, eps;
    const int32_t* rows;    // [N]
    const float* guidance;  // [N]
    const float* update;    // [E][K+1][K+3]
    const float *p_x, *p_m, *k_img, *k_eps;  // [E]
    const float* residual;                   // [E][K+1] or null
};
void cfg_step(const CfgStep& step);

// Over the last axis. All of one floating dtype; every stride is free, and out may be x.
struct LayerNorm {
    Tensor x, out;        // [.., C]
    Tensor weight, bias;  // [C]
    float eps;
};
void layer_norm(const LayerNorm& op);

// out = x[.., :C] gelu(x[.., C:]).
struct Geglu {
    Tensor x, out;  // [.., 2C] and [.., C], every stride free
};
void geglu(const Geglu& op);

// Over groups of neighbouring channels, each image by itself; silu: y sigmoid(y) after. All of one floating dtype.
struct GroupNormSilu {
    Tensor x, out;        // [N, C, h, w], every stride free (NHWC: the channel's is 1); out may be x
    Tensor weight, bias;  // [C]
    int groups;           // a divisor of C
    float eps;
    bool silu;
};
void group_norm_silu(const GroupNormSilu& op);

// f32 [N][C][pixels] in [-1, 1] -> u8 [N][pixels][C]. False when a value is not finite.
bool rgb_pack(Images<const float> in, uint8_t* out, int64_t images, int64_t channels, int64_t pixels);
// u8 [N][pixels][C] -> f32 [N][C][pixels] in [-1, 1].
void rgb_unpack(const uint8_t* in, float* out, int64_t images, int64_t channels, int64_t pixels);

// out = softmax(q k^T scale + mask) v + sum over segments of weight softmax(q k_s^T scale) v_s
constexpr int kMaxSegments = 8;

struct Attention {
    Tensor q, k, v, out;  // [B, T, H, D], one dtype; the last dimension contiguous
    Tensor mask;          // optional, [B, H, Tq, Tk] with strides of 0: added (a float), or u8, 1 = may look
    float scale;
    int segments;
    struct Segment {
        Tensor k, v;
        Tensor weight;  // f32 [B, H, Tq] with strides of 0
    } segment[kMaxSegments];
};
void attention(const Attention& attention);

}  // namespace hotloop
