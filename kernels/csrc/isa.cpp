// The instruction set in use: found once, lowered by tests.

#include <atomic>

#include "common.h"

namespace hotloop {
namespace {

Isa find() {
#ifdef HOTLOOP_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx2 && avx512) return Isa::avx512;
    if (avx2) return Isa::avx2;
#endif
    return Isa::scalar;
}

std::atomic<Isa> in_use{best_isa()};

}  // namespace

Isa best_isa() {
    static const Isa best = find();
    return best;
}

Isa isa() { return in_use.load(std::memory_order_relaxed); }

void set_isa(Isa isa) { in_use.store(isa < best_isa() ? isa : best_isa()); }

const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "scalar"; }

}  // namespace hotloop
