// The CUDA attention kernels on the CPU, for test_attention_cuda_maps.py: every block of the grid in turn.
#include <cstdint>
#include <cstring>
#include <string>

#include "attention_ffma.h"
#include "attention_mma.h"

using namespace hotloop;
using namespace hotloop::attention;
using machine::Block;
using machine::Order;

namespace {

struct Grid {
    int64_t batch, heads;
    Order order;
    uint64_t seed;
    int64_t conflicts = 0;

    template <class Body>
    void run(int rows, int queries, int threads, int bytes, Body body) {
        for (int z = 0; z < batch; ++z)
            for (int y = 0; y < heads; ++y)
                for (int x = 0; x < (queries + rows - 1) / rows; ++x) {
                    Block block(threads, bytes, x, y, z, order, seed++);
                    block.run(body);
                    conflicts += block.conflicts;
                }
    }
};

template <class T>
void run_mma(const Params& p, Grid& grid, bool tall, int block_limit) {
    with_mma_shape(p.head_size, tall, block_limit, [&](auto shape) {
        using S = decltype(shape);
        grid.run(S::kRows, p.queries, S::kThreads, S::bytes(p.stages), [&] {
            MmaAttention<T, S> attention(p, machine::shared_address(machine::shared()));
            attention.run();
        });
    });
}

void run_ffma(const Params& p, Grid& grid) {
    with_ffma_shape(p.head_size, [&](auto shape) {
        using S = decltype(shape);
        grid.run(S::kRows, p.queries, S::kThreads, S::kBytes, [&] {
            FfmaAttention<S> attention(p, machine::shared_address(machine::shared()));
            attention.run();
        });
    });
}

thread_local std::string fault;

}  // namespace

extern "C" {

// The dtype: 0 float32, 1 float16, 2 bfloat16. Returns the bank conflicts of ldmatrix, -1 on a fault.
int64_t emulate(const Params* p, int dtype, int64_t batch, int64_t heads, int tall, int block_limit, int order,
                uint64_t seed) {
    Grid grid{batch, heads, Order(order), seed};
    try {
        if (dtype == 0)
            run_ffma(*p, grid);
        else if (dtype == 1)
            run_mma<machine::F16>(*p, grid, tall != 0, block_limit);
        else
            run_mma<machine::Bf16>(*p, grid, tall != 0, block_limit);
    } catch (const machine::Fault& error) {
        fault = error.what();
        return -1;
    }
    return grid.conflicts;
}

const char* last_fault() { return fault.c_str(); }
int64_t params_size() { return sizeof(Params); }

}  // extern "C"
