// One value of an image through cfg_step: what a CUDA thread does, in the order of cfg_step.cpp, bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "exact.h"
#include "ops.h"

namespace hotloop {

// What a row of the table says, for every value of an image.
struct StepRow {
    float update[kMaxStates][kMaxStates + 2];  // the columns used: K + 3
    float residual[kMaxStates];
    float p_x, p_m, k_img, k_eps, guidance;
};

// Item `index` of the row's numbers, of which there are step_row_items(): so that a block's threads load it together.
HOTLOOP_HD inline int step_row_items(const CfgStep& s) { return s.states * (s.states + 2) + s.states + 5; }
HOTLOOP_HD inline void load_step_row(const CfgStep& s, int64_t image, int64_t row, int index, StepRow& to) {
    const int columns = s.states + 2, matrix = s.states * columns;
    if (index < matrix) {
        to.update[index / columns][index % columns] = s.update[row * matrix + index];
        return;
    }
    const int i = index - matrix - s.states;
    if (i < 0) {
        to.residual[i + s.states] = s.residual ? s.residual[row * s.states + i + s.states] : 0.0f;
    } else if (i == 0) {
        to.p_x = s.p_x[row];
    } else if (i == 1) {
        to.p_m = s.p_m[row];
    } else if (i == 2) {
        to.k_img = s.mask ? s.k_img[row] : 0.0f;
    } else if (i == 3) {
        to.k_eps = s.mask ? s.k_eps[row] : 0.0f;
    } else {
        to.guidance = s.guidance[image];
    }
}

// A row of the update that leaves its state as it is. x is not left alone where it is blended.
HOTLOOP_HD inline bool is_kept(const CfgStep& s, const StepRow& row, int state) {
    if (s.mask && state == 0) return false;
    for (int c = 0; c < s.states + 2; ++c)
        if (row.update[state][c] != (c == state ? 1.0f : 0.0f)) return false;
    return true;
}

// A running sum that begins with its first term, not with 0: -0 stays -0.
struct RunningSum {
    float value = 0.0f;
    bool begun = false;

    HOTLOOP_HD void add(float weight, float term) {
        value = begun ? plus(value, times(weight, term)) : times(weight, term);
        begun = true;
    }
};

// `at`: channel and pixel. Nothing with a coefficient of zero is read.
HOTLOOP_HD inline void step_value(const CfgStep& s, const StepRow& row, int64_t image, int64_t at) {
    const int d_column = s.states, z_column = s.states + 1;

    // Plan.
    bool kept[kMaxStates] = {}, read[kMaxStates] = {}, reads_d = false, reads_z = false;
    HOTLOOP_UNROLL
    for (int r = 0; r < kMaxStates; ++r) {
        if (r >= s.states) continue;
        kept[r] = is_kept(s, row, r);
        if (kept[r]) continue;
        reads_d = reads_d || row.update[r][d_column] != 0.0f;
        reads_z = reads_z || row.update[r][z_column] != 0.0f;
        HOTLOOP_UNROLL
        for (int c = 0; c < kMaxStates; ++c) read[c] = read[c] || (c < s.states && row.update[r][c] != 0.0f);
    }
    read[0] = read[0] || reads_d;

    // Load.
    float state[kMaxStates] = {};
    HOTLOOP_UNROLL
    for (int c = 0; c < kMaxStates; ++c)
        if (c < s.states && (read[c] || (reads_d && s.residual && row.residual[c] != 0.0f)))
            state[c] = s.state[c][image][at];

    // Guide.
    float d = 0.0f;
    if (reads_d) {
        float m = s.m_c[image][at];
        if (s.m_u || s.residual) {
            float m_u;
            if (s.residual) {
                RunningSum sum;
                HOTLOOP_UNROLL
                for (int c = 0; c < kMaxStates; ++c)
                    if (c < s.states && row.residual[c] != 0.0f) sum.add(row.residual[c], state[c]);
                m_u = sum.value;
            } else {
                m_u = s.m_u[image][at];
            }
            m = plus(m_u, times(row.guidance, plus(m, -m_u)));
        }
        d = plus(times(row.p_x, state[0]), times(row.p_m, m));
    }
    const float z = !reads_z ? 0.0f : s.z ? s.z[image][at] : NAN;

    // Sum, blend, store: every state was read before.
    HOTLOOP_UNROLL
    for (int r = 0; r < kMaxStates; ++r) {
        if (r >= s.states || kept[r]) continue;
        RunningSum sum;
        HOTLOOP_UNROLL
        for (int c = 0; c < kMaxStates; ++c)
            if (c < s.states && row.update[r][c] != 0.0f) sum.add(row.update[r][c], state[c]);
        if (row.update[r][d_column] != 0.0f) sum.add(row.update[r][d_column], d);
        if (row.update[r][z_column] != 0.0f) sum.add(row.update[r][z_column], z);
        float value = sum.value;
        if (r == 0 && s.mask) {
            const float mask = s.mask[image][at % s.pixels];  // one mask for all channels
            const float again = plus(times(row.k_img, s.known[image][at]), times(row.k_eps, s.eps[image][at]));
            value = plus(times(mask, value), times(plus(1.0f, -mask), again));
        }
        s.state[r][image][at] = value;
    }
}

// Where the row of an image is not in the table: a result that cannot pass for one. The host does not see a device's rows.
HOTLOOP_HD inline void spoil_value(const CfgStep& s, int64_t image, int64_t at) {
    for (int r = 0; r < s.states; ++r) s.state[r][image][at] = NAN;
}

}  // namespace hotloop
