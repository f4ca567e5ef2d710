// cfg_step: guidance and one sampler row, fused.
//
// What:    d = p_x x + p_m (m_u + g (m_c - m_u)), then S' = M [S, d, z], then the inpainting blend of x.
// Layout:  every tensor float32, an image [C, h, w] contiguous; image n uses row rows[n] of the table.
// Limit:   memory: each tensor that the row names is read once and written once. Columns that are zero and rows that
//          are identity cost nothing, so a first-order sampler touches x and m only.
// Order:   terms add up from the first column to the last in float32, as in cfg_step.py: equal bit for bit, and
//          independent of the batch around an image.

#include <algorithm>
#include <cstring>

#include "cfg_step_value.h"
#include "common.h"
#include "ops.h"

namespace hotloop {
namespace {

// 256 floats: the whole working set of a block (8 states in, 8 out, m_c, m_u, d, z) is 20 KB and stays in L1.
constexpr int64_t kBlock = 256;
constexpr int kMaxColumns = kMaxStates + 2;

struct Term {
    float weight;
    int column;
};

struct Sum {
    int target = 0;  // the state row written
    int count = 0;
    Term terms[kMaxColumns];
};

Sum nonzero(const float* weights, int columns, int target) {
    Sum sum;
    sum.target = target;
    for (int c = 0; c < columns; ++c)
        if (weights[c] != 0.0f) sum.terms[sum.count++] = {weights[c], c};
    return sum;
}

bool is_identity(const Sum& sum) {
    return sum.count == 1 && sum.terms[0].column == sum.target && sum.terms[0].weight == 1.0f;
}

bool names(const Sum& sum, int column) {
    return std::any_of(sum.terms, sum.terms + sum.count, [=](const Term& t) { return t.column == column; });
}

HOTLOOP_INLINE void add_up(const Sum& sum, const float* const* columns, float* HOTLOOP_RESTRICT out, int64_t n) {
    if (sum.count == 0) {
        std::fill(out, out + n, 0.0f);
        return;
    }
    const float* first = columns[sum.terms[0].column];
    const float w0 = sum.terms[0].weight;
    for (int64_t i = 0; i < n; ++i) out[i] = w0 * first[i];
    for (int t = 1; t < sum.count; ++t) {
        const float* term = columns[sum.terms[t].column];
        const float w = sum.terms[t].weight;
        for (int64_t i = 0; i < n; ++i) out[i] = out[i] + w * term[i];
    }
}

HOTLOOP_INLINE void step_image(const CfgStep& s, int64_t image) {
    const int K1 = s.states, d_column = K1, z_column = K1 + 1;
    const int64_t row = s.rows[image];
    const float g = s.guidance[image], p_x = s.p_x[row], p_m = s.p_m[row];
    const bool blend = static_cast<bool>(s.mask);

    // Plan: the rows to compute, each a short sum.
    Sum sums[kMaxStates];
    int count = 0;
    bool needs_d = false;
    for (int r = 0; r < K1; ++r) {
        const Sum sum = nonzero(s.update + (row * K1 + r) * (K1 + 2), K1 + 2, r);
        if (is_identity(sum) && !(blend && r == 0)) continue;
        needs_d = needs_d || names(sum, d_column);
        sums[count++] = sum;
    }
    const Sum residual = s.residual ? nonzero(s.residual + row * K1, K1, 0) : Sum{};

    alignas(64) float d[kBlock];
    alignas(64) float m_u_block[kBlock];
    alignas(64) float out[kMaxStates][kBlock];
    const float* columns[kMaxColumns];

    for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t start = 0; start < s.pixels; start += kBlock) {
            const int64_t n = std::min(kBlock, s.pixels - start);
            const int64_t at = c * s.pixels + start;
            for (int r = 0; r < K1; ++r) columns[r] = s.state[r][image] + at;
            columns[d_column] = d;
            columns[z_column] = s.z ? s.z[image] + at : nullptr;

            // Guide.
            if (needs_d) {
                const float* x = columns[0];
                const float* m_c = s.m_c[image] + at;
                const float* m_u = s.m_u ? s.m_u[image] + at : nullptr;
                if (s.residual) {
                    add_up(residual, columns, m_u_block, n);
                    m_u = m_u_block;
                }
                if (m_u) {
                    for (int64_t i = 0; i < n; ++i) d[i] = p_x * x[i] + p_m * (m_u[i] + g * (m_c[i] - m_u[i]));
                } else {
                    for (int64_t i = 0; i < n; ++i) d[i] = p_x * x[i] + p_m * m_c[i];
                }
            }

            // Sum. Every row reads the old state, so nothing is stored before all are done.
            for (int r = 0; r < count; ++r) add_up(sums[r], columns, out[r], n);

            // Blend.
            if (blend) {
                const float* mask = s.mask[image] + start;  // one mask for all channels
                const float* known = s.known[image] + at;
                const float* eps = s.eps[image] + at;
                const float k_img = s.k_img[row], k_eps = s.k_eps[row];
                float* x = out[0];
                for (int64_t i = 0; i < n; ++i)
                    x[i] = mask[i] * x[i] + (1.0f - mask[i]) * (k_img * known[i] + k_eps * eps[i]);
            }

            // Store.
            for (int r = 0; r < count; ++r)
                std::memcpy(s.state[sums[r].target][image] + at, out[r], n * sizeof(float));
        }
    }
}

}  // namespace

void cfg_step(const CfgStep& step) {
    with_isa([&]() HOTLOOP_INLINE_LAMBDA {
        for (int64_t image = 0; image < step.images; ++image) step_image(step, image);
    });
}

void cfg_step_by_value(const CfgStep& step) {
    for (int64_t image = 0; image < step.images; ++image) {
        const int64_t row = step.rows[image];
        const bool known = row >= 0 && row < step.table;
        StepRow numbers;
        for (int i = 0; known && i < step_row_items(step); ++i) load_step_row(step, image, row, i, numbers);
        for (int64_t at = 0; at < step.channels * step.pixels; ++at) {
            if (known) {
                step_value(step, numbers, image, at);
            } else {
                spoil_value(step, image, at);
            }
        }
    }
}

}  // namespace hotloop
