// warp_blend: a picture moved by coarse flows, blended with what it hides, coloured where neither has what is needed.
//
// What:    colour over the sources, each sampled bilinearly where its flow says, each blended over those before it by its
//          mask. Over boxes a layer stands for the ones below it: sharper grids for eyes and mouth.
// Layout:  sources and result u8 [h, w, 4], premultiplied, any sizes; fields f32 [C, gh, gw], every stride free. A source
//          or result whose pixels do not lie side by side is drawn pixel by pixel.
// Order:   float32 without contraction up to the weights, whole numbers from there: the same bytes on every instruction
//          set, for every count of threads, and from a CUDA thread.

#include "warp_blend_rows.h"

#include "threads.h"

namespace hotloop {
namespace {

constexpr WarpBlendKernel kPortable = WarpBlendRows<Portable>::table();

const WarpBlendKernel& kernel() {
#ifdef HOTLOOP_X86
    switch (isa()) {
        case Isa::avx512: return kWarpBlendAvx512;
        case Isa::avx2: return kWarpBlendAvx2;
        case Isa::scalar: break;
    }
#endif
    return kPortable;
}

bool side_by_side(const Tensor& t) {
    return (t.shape[1] == 1 || t.stride[1] == 4) && t.stride[2] == 1;
}

// Two pixels a load, offsets of 32 bits.
bool in_pairs(const Tensor& t) {
    const int64_t stride = t.stride[0] < 0 ? -t.stride[0] : t.stride[0];
    return side_by_side(t) && t.shape[0] > 1 && t.shape[1] > 1 && stride * t.shape[0] < int64_t{1} << 31;
}

template <class Body>
void in_chunks(const WarpBlend& op, const Body& body) {
    const int height = static_cast<int>(op.out.shape[0]);
    // A pixel is worth some ten values of other operators.
    const bool shared = worth_waking(10 * height * op.out.shape[1]);
    const int chunks = shared && threads() > 1 ? 4 * threads() < height ? 4 * threads() : height : 1;
    const auto run = [&](int64_t i) {
        body(static_cast<int>(height * i / chunks), static_cast<int>(height * (i + 1) / chunks));
    };
    if (chunks > 1) {
        parallel_for(chunks, run);
    } else {
        run(0);
    }
}

}  // namespace

void warp_blend(const WarpBlend& op) {
    bool fits = side_by_side(op.out);
    for (int s = 0; s < op.sources; ++s) fits = fits && in_pairs(op.source[s]);
    if (!fits) return warp_blend_by_value(op);
    const WarpBlendKernel& fast = kernel();
    const int64_t room = fast.scratch(op);
    in_chunks(op, [&](int first, int end) { fast.run(op, first, end, scratch(room)); });
}

void warp_blend_by_value(const WarpBlend& op) {
    Place places[kMaxLayers];
    places_of(op, places);
    in_chunks(op, [&](int first, int end) {
        for (int y = first; y < end; ++y)
            for (int x = 0; x < op.out.shape[1]; ++x) blend_pixel(op, places, x, y);
    });
}

}  // namespace hotloop
