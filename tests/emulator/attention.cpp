// The CUDA attention kernels on the CPU, for test_attention_cuda_maps.py: every block of the grid in turn.
#include <cstddef>
#include <cstdint>
#include <string>

#include "attention_ffma.h"
#include "attention_mma.h"
#include "attention_wgmma.h"

using namespace hotloop;
using namespace hotloop::attention_kernels;
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
            if (p.sets > 1)
                attention.template run<true>();
            else
                attention.template run<false>();
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

template <class T>
void run_wgmma(const Params& p, Grid& grid) {
    with_wgmma_shape(p.head_size, [&](auto shape) {
        using S = decltype(shape);
        const KeySet& set = p.set[0];
        const MapPlan q = map_plan(p.q, p.head_size, p.queries, grid.heads, grid.batch, S::kRows);
        const MapPlan k = map_plan(set.k, p.head_size, set.keys, grid.heads, grid.batch, S::kTileKeys);
        const MapPlan v = map_plan(set.v, p.head_size, set.keys, grid.heads, grid.batch, S::kTileKeys);
        grid.run(S::kRows, p.queries, S::kThreads, S::kBytes, [&] {
            const WgmmaAttention<T, S> attention(p, q, k, v, machine::shared_address(machine::shared()));
            attention.run();
        });
    });
}

enum class Kernel { portable, tall, hopper };

template <class T>
void run_16bit(const Params& p, Grid& grid, Kernel kernel, int block_limit) {
    if (kernel == Kernel::hopper)
        run_wgmma<T>(p, grid);
    else
        run_mma<T>(p, grid, kernel == Kernel::tall, block_limit);
}

thread_local std::string fault;

}  // namespace

extern "C" {

// Returns the bank conflicts of ldmatrix, -1 on a fault.
int64_t emulate(const Attention* op, int kernel, int stages, int block_limit, int order, uint64_t seed) {
    Params p = params_of(*op);
    p.stages = stages;
    Grid grid{op->q.shape[0], op->q.shape[2], Order(order), seed};
    try {
        if (op->q.dtype == DType::f32)
            run_ffma(p, grid);
        else if (op->q.dtype == DType::f16)
            run_16bit<machine::F16>(p, grid, Kernel(kernel), block_limit);
        else
            run_16bit<machine::Bf16>(p, grid, Kernel(kernel), block_limit);
    } catch (const machine::Fault& error) {
        fault = error.what();
        return -1;
    }
    return grid.conflicts;
}

const char* last_fault() { return fault.c_str(); }
int64_t attention_size() { return sizeof(Attention); }
int64_t segment_offset() { return offsetof(Attention, segment); }
int takes_wgmma(const Attention* op) { return wgmma_fits(*op, params_of(*op)); }

// The plans: shared memory in bytes and stages (0: does not fit) of the instance for a head size.
int stages_of(int head_size, int tall, int block_limit, int sm_limit, int resident, int* bytes) {
    int stages = 0;
    with_mma_shape(head_size, tall != 0, block_limit, [&](auto shape) {
        using S = decltype(shape);
        stages = choose_stages(S::bytes(2), S::kStageBytes, block_limit, sm_limit, resident);
        *bytes = S::bytes(stages);
    });
    return stages;
}
int ffma_bytes(int head_size) {
    int bytes = 0;
    with_ffma_shape(head_size, [&](auto shape) { bytes = decltype(shape)::kBytes; });
    return bytes;
}
int wgmma_bytes(int head_size) {
    int bytes = 0;
    with_wgmma_shape(head_size, [&](auto shape) { bytes = decltype(shape)::kBytes; });
    return bytes;
}

// The index maps by themselves.
int chunk_offset(int row, int chunk, int chunks) { return maps::chunk_offset(row, chunk, chunks); }
int fragment_row(int lane) { return maps::fragment_row(lane); }
int fragment_column(int lane) { return maps::fragment_column(lane); }
uint32_t swizzle_128(uint32_t address) { return maps::swizzle_128(address); }
uint64_t descriptor_k_major(uint32_t tile, int rows, int k) { return maps::descriptor_k_major(tile, rows, k); }
uint64_t descriptor_mn_major(uint32_t tile, int rows, int row) { return maps::descriptor_mn_major(tile, rows, row); }

}  // extern "C"
