// geglu: out = x[.., :C] gelu(x[.., C:]), with the exact GELU.
//
// Layout:  x [.., 2C], out [.., C], every stride free. float32, float16 or bfloat16.
// Limit:   memory with AVX-512, arithmetic below: a value costs about 60 instructions, among them one division.
// Order:   float32 within, one rounding at the end: the same bits on every instruction set.

#include "functions.h"
#include "ops.h"
#include "rows.h"
#include "threads.h"

namespace hotloop {
namespace {

template <class T>
void run(const Geglu& op) {
    const int last = op.x.ndim - 1;
    const int64_t channels = op.out.shape[last], stride = op.x.stride[last];
    const Rows in = rows_of(op.x), out = rows_of(op.out);

    parallel_ranges(in.count, 2 * channels, [&](int64_t first, int64_t end) {
        float* copy = scratch(2 * channels);
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            for (int64_t row = first; row < end; ++row) {
                const T* from = static_cast<const T*>(op.x.data) + offset_of(in, row);
                T* to = static_cast<T*>(op.out.data) + offset_of(out, row);
                const float* x = load(from, stride, channels, copy);
                const float* gate = load(from + channels * stride, stride, channels, copy + channels);
                store(to, op.out.stride[last], channels,
                      [=](int64_t i) HOTLOOP_INLINE_LAMBDA { return x[i] * gelu(gate[i]); });
            }
        });
    });
}

}  // namespace

void geglu(const Geglu& op) {
    with_type(op.x.dtype, [&](auto* type) { run<std::remove_pointer_t<decltype(type)>>(op); });
}

}  // namespace hotloop
