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
    int64_t table;                     // E
    Images<float> state[kMaxStates];   // [K+1][N][C h w], updated in place
    Images<const float> m_c, m_u, z, mask, known, eps;
    const int32_t* rows;    // [N]
    const float* guidance;  // [N]
    const float* update;    // [E][K+1][K+3]
    const float *p_x, *p_m, *k_img, *k_eps;  // [E]
    const float* residual;                   // [E][K+1] or null
};
void cfg_step(const CfgStep& step);
// The same value by value, as a CUDA thread takes it (cfg_step_value.h): for the tests.
void cfg_step_by_value(const CfgStep& step);

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
    Tensor moments;  // CUDA only: room for f32 [N, tiles, groups, 2]
};
void group_norm_silu(const GroupNormSilu& op);

// [-1, 1] -> bytes, clamped.
struct RgbPack {
    Tensor in;   // [N, C, h, w], floating, every stride free
    Tensor out;  // u8 [N, h, w, C], every stride free
    Tensor bad;  // CUDA only, optional: i32 [1], how many values were not finite
};
int64_t rgb_pack(const RgbPack& op);  // how many values were not finite

// fit: area along an axis that shrinks, linear along one that grows.
enum class Filter { fit, area, linear };

// Bytes -> [-1, 1], resized where the sizes differ.
struct RgbUnpack {
    Tensor in;   // u8 [N, h, w, C], every stride free
    Tensor out;  // [N, C, H, W], floating, every stride free
    Filter filter;
};
void rgb_unpack(const RgbUnpack& op);
// The same value by value, as a CUDA thread takes it (rgb_value.h), into contiguous f32: for the tests.
void rgb_unpack_by_value(const RgbUnpack& op);

// Sources warped by flows on coarse grids and blended by masks, a colour over them; later layers in their boxes stand
// for the earlier ones.
constexpr int kMaxSources = 4;
constexpr int kMaxLayers = 16;

struct WarpBlend {
    int sources, layers;
    Tensor source[kMaxSources];  // u8 [h, w, 4], premultiplied, every stride free
    struct Layer {
        Tensor field;   // f32 [C, gh, gw], every stride free: flows x and y of each source, masks, colour or none
        double box[4];  // x0, y0, x1, y1 in pictures; the first layer's is the whole picture
    } layer[kMaxLayers];
    Tensor out;  // u8 [H, W, 4], every stride free
};
void warp_blend(const WarpBlend& op);
// The same pixel by pixel, as a CUDA thread takes it (warp_blend_value.h).
void warp_blend_by_value(const WarpBlend& op);

// Elementary steps over the nodes of a grid (formula.cpp has their layout). On the CPU alone.
struct Formula {
    Tensor steps;             // i32 [n, 5]
    Tensor constants, given;  // f32 [k], [m]: numbers and tables
    Tensor columns, rows;     // f32 [w], [h]: registers 0 and 1
    Tensor out;               // f32 [C, h, w]
    int registers;            // at least 2
};
void formula(const Formula& op);

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
