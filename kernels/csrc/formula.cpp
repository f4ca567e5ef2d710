// formula: what stands in a list of elementary steps, for every node of a grid.
//
// What:    a few hundred float32 steps over some thousand nodes, as fields of animation are made of. As calls of an array
//          library each step costs its call and a trip of all nodes through the caches.
// Layout:  steps i32 [n, 5], each (operation, register, a, b, c); a and b, c are registers, or numbers where they are
//          negative: ~index into constants, then given. out f32 [C, h, w]; columns [w], rows [h].
// How:     256 nodes at a time go through all steps, in registers of 1 kB each that stay in L1.
// Order:   each step is rounded as it stands: the bits of the NumPy reference on every instruction set.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "ops.h"
#include "threads.h"

namespace hotloop {
namespace {

constexpr int kNodes = 256;  // a turn: a constant, so that loops have no tails

// In the order of formula.py's OPERATIONS.
enum class Do {
    store, add, subtract, multiply, divide, minimum, maximum, less, select, multiply_add, multiply_subtract,
    subtract_product, difference_times, absolute, sqrt, floor, ramp, rise, bump, take, count
};

struct Step {
    int32_t operation, to, a, b, c;
};

// A step whose operands were found once for all turns.
struct Ready {
    Do operation;
    bool a_varies, b_varies, c_varies;  // else one number for all nodes
    float* to;
    const float *a, *b, *c;
    int32_t size;  // of the table that b points to, or what c was
};

template <class F>
HOTLOOP_INLINE void each(const Ready& s, F f) {
    float* to = s.to;
    const float* x = s.a;
    HOTLOOP_NO_DEPENDENCE
    for (int i = 0; i < kNodes; ++i) to[i] = f(x[i]);
}

template <class F>
HOTLOOP_INLINE void pairs(const Ready& s, F f) {
    float* to = s.to;
    const float *x = s.a, *y = s.b;
    if (s.a_varies && s.b_varies) {
        HOTLOOP_NO_DEPENDENCE
        for (int i = 0; i < kNodes; ++i) to[i] = f(x[i], y[i]);
    } else if (s.a_varies) {
        const float same = *y;
        HOTLOOP_NO_DEPENDENCE
        for (int i = 0; i < kNodes; ++i) to[i] = f(x[i], same);
    } else {
        const float same = *x;
        if (s.b_varies) {
            HOTLOOP_NO_DEPENDENCE
            for (int i = 0; i < kNodes; ++i) to[i] = f(same, y[i]);
        } else {
            const float result = f(same, *y);
            for (int i = 0; i < kNodes; ++i) to[i] = result;
        }
    }
}

template <bool kA, bool kB, bool kC, class F>
HOTLOOP_INLINE void triple(const Ready& s, F f) {
    float* to = s.to;
    const float *x = s.a, *y = s.b, *z = s.c;
    const float a = *x, b = *y, c = *z;
    HOTLOOP_NO_DEPENDENCE
    for (int i = 0; i < kNodes; ++i) to[i] = f(kA ? x[i] : a, kB ? y[i] : b, kC ? z[i] : c);
}

template <class F>
HOTLOOP_INLINE void triples(const Ready& s, F f) {
    switch (s.a_varies + 2 * s.b_varies + 4 * s.c_varies) {
        case 7: return triple<true, true, true>(s, f);
        case 6: return triple<false, true, true>(s, f);
        case 5: return triple<true, false, true>(s, f);
        case 4: return triple<false, false, true>(s, f);
        case 3: return triple<true, true, false>(s, f);
        case 2: return triple<false, true, false>(s, f);
        case 1: return triple<true, false, false>(s, f);
        default: return triple<false, false, false>(s, f);
    }
}

// NumPy's: a NaN stays one.
HOTLOOP_INLINE float least(float a, float b) { return a < b || a != a ? a : b; }
HOTLOOP_INLINE float most(float a, float b) { return a > b || a != a ? a : b; }
// The same for one bound, in one instruction.
HOTLOOP_INLINE float not_below(float bound, float x) { return bound > x ? bound : x; }
HOTLOOP_INLINE float not_above(float bound, float x) { return bound < x ? bound : x; }
HOTLOOP_INLINE float held(float x) { return not_above(1.0f, not_below(0.0f, x)); }

HOTLOOP_INLINE void select(const Ready& s) {
    float* to = s.to;
    const float *w = s.a, *x = s.b, *y = s.c;
    if (!s.a_varies) {
        const bool first = *w != 0.0f;
        const float* from = first ? x : y;
        const bool varies = first ? s.b_varies : s.c_varies;
        HOTLOOP_NO_DEPENDENCE
        for (int i = 0; i < kNodes; ++i) to[i] = varies ? from[i] : *from;
    } else if (s.b_varies && s.c_varies) {
        HOTLOOP_NO_DEPENDENCE
        for (int i = 0; i < kNodes; ++i) to[i] = w[i] != 0.0f ? x[i] : y[i];
    } else if (s.b_varies) {
        const float same = *y;
        HOTLOOP_NO_DEPENDENCE
        for (int i = 0; i < kNodes; ++i) to[i] = w[i] != 0.0f ? x[i] : same;
    } else if (s.c_varies) {
        const float same = *x;
        HOTLOOP_NO_DEPENDENCE
        for (int i = 0; i < kNodes; ++i) to[i] = w[i] != 0.0f ? same : y[i];
    } else {
        const float one = *x, other = *y;
        HOTLOOP_NO_DEPENDENCE
        for (int i = 0; i < kNodes; ++i) to[i] = w[i] != 0.0f ? one : other;
    }
}

// a: where to look, held within the table.
HOTLOOP_INLINE void take(const Ready& s) {
    float* to = s.to;
    const float *at = s.a, *table = s.b;
    const float last = static_cast<float>(s.size - 1);
    int32_t index[kNodes];
    for (int i = 0; i < kNodes; ++i) {
        const float low = at[i] > 0.0f ? at[i] : 0.0f;
        const auto whole = static_cast<int32_t>(low < last ? low : last);
        index[i] = whole < s.size ? whole : s.size - 1;  // a float may be above a large size
    }
    HOTLOOP_NO_DEPENDENCE
    for (int i = 0; i < kNodes; ++i) to[i] = table[index[i]];
}

HOTLOOP_INLINE void perform(const Ready& s) {
    switch (s.operation) {
        case Do::add: return pairs(s, [](float x, float y) HOTLOOP_INLINE_LAMBDA { return x + y; });
        case Do::subtract: return pairs(s, [](float x, float y) HOTLOOP_INLINE_LAMBDA { return x - y; });
        case Do::multiply: return pairs(s, [](float x, float y) HOTLOOP_INLINE_LAMBDA { return x * y; });
        case Do::divide: return pairs(s, [](float x, float y) HOTLOOP_INLINE_LAMBDA { return x / y; });
        case Do::minimum: return pairs(s, [](float x, float y) HOTLOOP_INLINE_LAMBDA { return least(x, y); });
        case Do::maximum: return pairs(s, [](float x, float y) HOTLOOP_INLINE_LAMBDA { return most(x, y); });
        case Do::less: return pairs(s, [](float x, float y) HOTLOOP_INLINE_LAMBDA { return x < y ? 1.0f : 0.0f; });
        case Do::select: return select(s);
        case Do::multiply_add:
            return triples(s, [](float x, float y, float z) HOTLOOP_INLINE_LAMBDA { return x * y + z; });
        case Do::multiply_subtract:
            return triples(s, [](float x, float y, float z) HOTLOOP_INLINE_LAMBDA { return x * y - z; });
        case Do::subtract_product:
            return triples(s, [](float x, float y, float z) HOTLOOP_INLINE_LAMBDA { return z - x * y; });
        case Do::difference_times:
            return triples(s, [](float x, float y, float z) HOTLOOP_INLINE_LAMBDA { return (x - y) * z; });
        case Do::absolute: return each(s, [](float x) HOTLOOP_INLINE_LAMBDA { return std::fabs(x); });
        case Do::sqrt: return each(s, [](float x) HOTLOOP_INLINE_LAMBDA { return std::sqrt(x); });
        case Do::floor: return each(s, [](float x) HOTLOOP_INLINE_LAMBDA { return std::floor(x); });
        case Do::ramp: return each(s, [](float x) HOTLOOP_INLINE_LAMBDA { return held(x); });
        case Do::rise: return each(s, [](float x) HOTLOOP_INLINE_LAMBDA {
            const float t = held(x);
            return t * t * (3.0f - 2.0f * t);
        });
        case Do::bump: return each(s, [](float x) HOTLOOP_INLINE_LAMBDA {
            const float inside = not_below(0.0f, 1.0f - x * x);
            return inside * inside;
        });
        case Do::take: return take(s);
        case Do::store:
        case Do::count: return;
    }
}

void fill(const Formula& op, int64_t first, int64_t count, float* column, float* row) {
    const auto* columns = static_cast<const float*>(op.columns.data);
    const auto* rows = static_cast<const float*>(op.rows.data);
    const int64_t width = op.columns.shape[0];
    int64_t y = first / width, x = first % width;
    for (int64_t i = 0; i < count;) {
        const int64_t run = std::min(width - x, count - i);
        std::copy(columns + x, columns + x + run, column + i);
        std::fill(row + i, row + i + run, rows[y]);
        i += run;
        x = 0;
        ++y;
    }
    std::fill(column + count, column + kNodes, 0.0f);
    std::fill(row + count, row + kNodes, 0.0f);
}

[[noreturn]] void broken(int64_t step, const char* what) {
    throw Error("formula", std::string("steps must name ") + what, "step " + std::to_string(step));
}

// Memory is safe whatever the steps say.
void check(const Formula& op, const Step* steps) {
    const int64_t numbers = op.constants.shape[0] + op.given.shape[0];
    const auto exists = [&](int32_t operand) {
        return operand < 0 ? ~operand < numbers : operand < op.registers;
    };
    for (int64_t i = 0; i < op.steps.shape[0]; ++i) {
        const Step& s = steps[i];
        const auto what = static_cast<Do>(s.operation);
        if (s.operation < 0 || s.operation >= static_cast<int32_t>(Do::count)) broken(i, "operations that there are");
        const int64_t places = what == Do::store ? op.out.shape[0] : op.registers;
        if (s.to < 0 || s.to >= places) broken(i, "registers and channels that there are");
        const bool one = what >= Do::absolute, three = what >= Do::select && !one, two = what >= Do::add && !one;
        if (!exists(s.a) || (two && !exists(s.b)) || (three && !exists(s.c)) || (one && s.a < 0))
            broken(i, "operands that there are");
        if (what != Do::take) continue;
        const int64_t constants = op.constants.shape[0], end = int64_t{s.b} + s.c;
        if (s.b < 0 || s.c < 1 || end > numbers || (s.b < constants && end > constants))
            broken(i, "tables that there are");
    }
}

std::vector<Ready> prepared(const Formula& op, const Step* steps, float* registers) {
    const int64_t constants = op.constants.shape[0], nodes = op.columns.shape[0] * op.rows.shape[0];
    const auto number = [&](int64_t index) {
        return index < constants ? static_cast<const float*>(op.constants.data) + index
                                 : static_cast<const float*>(op.given.data) + (index - constants);
    };
    const auto at = [&](int32_t operand) -> const float* {
        return operand < 0 ? number(~operand) : registers + int64_t{kNodes} * operand;
    };
    std::vector<Ready> ready(op.steps.shape[0]);
    for (size_t i = 0; i < ready.size(); ++i) {
        const Step& s = steps[i];
        const auto what = static_cast<Do>(s.operation);
        float* to = what == Do::store ? static_cast<float*>(op.out.data) + s.to * nodes
                                      : registers + int64_t{kNodes} * s.to;
        const bool table = what == Do::take;
        ready[i] = {what, s.a >= 0, s.b >= 0, s.c >= 0, to, at(s.a), table ? number(s.b) : at(s.b),
                    table ? nullptr : at(s.c), s.c};
    }
    return ready;
}

}  // namespace

void formula(const Formula& op) {
    const auto* steps = static_cast<const Step*>(op.steps.data);
    check(op, steps);
    const int64_t count = op.steps.shape[0], nodes = op.columns.shape[0] * op.rows.shape[0];
    constexpr int64_t kLine = 64;  // bytes, so that no load reaches over two
    const auto room = reinterpret_cast<uintptr_t>(scratch(int64_t{kNodes} * op.registers + kLine / 4));
    auto* registers = reinterpret_cast<float*>((room + kLine - 1) / kLine * kLine);
    const std::vector<Ready> ready = prepared(op, steps, registers);
    for (int64_t first = 0; first < nodes; first += kNodes) {
        const int64_t here = std::min<int64_t>(kNodes, nodes - first);
        fill(op, first, here, registers, registers + kNodes);
        with_isa([&]() HOTLOOP_INLINE_LAMBDA {
            for (int64_t i = 0; i < count; ++i) {
                const Ready& s = ready[i];
                if (s.operation != Do::store) {
                    perform(s);
                } else if (s.a_varies) {
                    std::copy(s.a, s.a + here, s.to + first);
                } else {
                    std::fill(s.to + first, s.to + first + here, *s.a);
                }
            }
        });
    }
}

}  // namespace hotloop
