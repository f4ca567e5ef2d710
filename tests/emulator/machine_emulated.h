// machine.h on the CPU: one block of a CUDA kernel, every thread a fiber, the warp and tensor core instructions by
// their documented layouts.
//
// Asynchronous work (cp.async, TMA, wgmma) is done at once, as late as its waits allow, or at random in between, and
// one warp runs as far ahead of the others as it can. A kernel whose result depends on any of that lacks a wait or a
// barrier. Reads and writes of shared memory through instructions are checked against its bounds, and ldmatrix's bank
// conflicts are counted. Fresh shared memory holds NaN.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_cuda.h"

#define HOTLOOP_DEVICE inline
#define HOTLOOP_UNROLL_SOME
#define HOTLOOP_NO_UNROLL

namespace hotloop::machine {

struct F16 {};
struct Bf16 {};

// --- 16-bit floats ---
inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline float from_bf16(uint16_t bits) { return float_of(uint32_t(bits) << 16); }
inline float from_f16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float x;
    if (exponent == 31)
        x = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        x = std::ldexp(float(fraction), -24);
    else
        x = std::ldexp(float(fraction | 1024), exponent - 25);
    return bits & 0x8000 ? -x : x;
}
inline uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if (std::isnan(x)) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_f16(float x) {
    const uint16_t sign = uint16_t(bits_of(x) >> 16 & 0x8000);
    const float a = std::fabs(x);
    if (std::isnan(x)) return 0x7fff;
    if (a == 0.0f) return sign;
    if (a >= 65520.0f) return uint16_t(sign | 0x7c00);
    int exponent;
    std::frexp(a, &exponent);  // a = f 2^exponent, f in [0.5, 1)
    const int unit = std::max(exponent - 11, -24);
    const int count = int(std::nearbyint(std::ldexp(a, -unit)));  // may carry into the next exponent, as it should
    return uint16_t(sign | (unit == -24 ? count : ((unit + 24) << 10) + count));
}

template <class T>
struct Bits;
template <>
struct Bits<F16> {
    static float to_float(uint16_t bits) { return from_f16(bits); }
    static uint16_t from_float(float x) { return to_f16(x); }
};
template <>
struct Bits<Bf16> {
    static float to_float(uint16_t bits) { return from_bf16(bits); }
    static uint16_t from_float(float x) { return to_bf16(x); }
};

// --- The block ---

// When copies and products are done: at once; as late as the waits allow; copies at once but products late; at random.
enum class Order { eager, lazy, mixed, random };
enum class Kind { block, vote, warp, shuffle, matrices, mma, wgmma };  // what threads meet for

struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Block {
  public:
    static constexpr uint32_t kBase = 2048;  // shared addresses start here, so that 0 is a fault

    Block(int threads, int shared_bytes, int x, int y, int z, Order order, uint64_t seed)
        : x(x), y(y), z(z), order(order), threads_(threads), random_(seed), fibers_(threads) {
        storage_.resize(shared_bytes / 4 + 1024 / 4, bits_of(NAN));
        const auto raw = reinterpret_cast<uintptr_t>(storage_.data());
        memory_ = reinterpret_cast<char*>((raw + 1023) / 1024 * 1024);
        size_ = shared_bytes;
    }

    template <class Body>
    void run(Body body) {
        body_ = body;
        current_ = this;
        for (int i = 0; i < threads_; ++i) {
            Fiber& fiber = fibers_[i];
            fiber.stack.reset(new char[kStack]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
        }
        int live = threads_;
        while (live > 0) {
            const int warp = next_warp();
            if (warp < 0) {
                if (engine_.empty()) throw Fault("deadlock: every thread waits");
                deliver();
                continue;
            }
            for (int i = 32 * warp; i < 32 * warp + 32; ++i) {
                Fiber& fiber = fibers_[i];
                if (!fiber.ready()) continue;
                fiber.word = nullptr;
                self_ = i;
                resume(fiber);
                if (!fault_.empty()) throw Fault(fault_);
                live -= fiber.done;
            }
            if (order == Order::random && !engine_.empty() && random_() % 512 == 0) deliver();
        }
        if (!engine_.empty()) throw Fault("the block ended while copies were under way");
    }

    // Called by a fiber: wait until the word has left its old value.
    void wait(const uint64_t& word, uint64_t old) {
        if (word != old) return;
        Fiber& fiber = fibers_[self_];
        fiber.word = &word;
        fiber.old = old;
        if (_setjmp(fiber.state) == 0) _longjmp(scheduler_, 1);
    }

    void fail(const std::string& why) {
        fault_ = why;
        fibers_[self_].done = true;
        _longjmp(scheduler_, 1);
    }

    // All of a group of threads meet; the last to arrive runs act(what each brought, in order of thread).
    using Brought = std::vector<void*>;
    template <class Act>
    void meet(Kind kind, int size, void* brought, const Act& act) {
        Meeting& meeting = meetings_[{kind, self_ / size}];
        meeting.brought.resize(size);
        meeting.brought[self_ % size] = brought;
        const uint64_t round = meeting.round;
        if (++meeting.arrived == size) {
            meeting.arrived = 0;
            ++meeting.round;
            act(meeting.brought);
        } else {
            wait(meeting.round, round);
        }
    }
    void meet(Kind kind, int size) {
        meet(kind, size, nullptr, [](const Brought&) {});
    }

    char* at(uint32_t address, int bytes) {
        if (address < kBase || address + bytes > kBase + size_) fail("shared memory address out of bounds");
        if (address % std::min(bytes, 16)) fail("misaligned shared memory address");
        return memory_ + (address - kBase);
    }
    uint32_t address(const void* pointer) const {
        return uint32_t(static_cast<const char*>(pointer) - memory_) + kBase;
    }
    char* memory() { return memory_; }

    // TMA: whole boxes arrive in any order.
    void send(std::function<void()> copy) {
        if (order == Order::eager || order == Order::mixed) return copy();
        engine_.push_back(std::move(copy));
    }
    void deliver() {
        const size_t which = order == Order::random ? random_() % engine_.size() : 0;
        const auto copy = std::move(engine_[which]);
        engine_.erase(engine_.begin() + long(which));
        copy();
    }

    // ldmatrix reads eight rows of 16 bytes a cycle, one from each group of four banks.
    void count_conflicts(const uint32_t* rows) {
        bool taken[8] = {};
        for (int i = 0; i < 8; ++i) {
            conflicts += taken[rows[i] / 16 % 8];
            taken[rows[i] / 16 % 8] = true;
        }
    }

    static Block& current() { return *current_; }
    int self() const { return self_; }
    int threads() const { return threads_; }
    bool coin() { return random_() % 2; }

    const int x, y, z;
    const Order order;
    int64_t conflicts = 0;

    // cp.async groups of each thread: the open one last.
    struct Copy {
        uint32_t target;
        const void* source;
        bool exists;
    };
    std::vector<std::vector<Copy>>& copies() { return fibers_[self_].copies; }

    struct Barrier {  // mbarrier
        int count = 0, pending = 0;
        int64_t bytes = 0;
        uint64_t phase = 0;
    };
    std::map<uint32_t, Barrier> barriers;
    std::map<int, std::pair<int, uint64_t>> named;  // arrivals, round

    struct Group {  // wgmma of one warpgroup
        std::vector<std::function<void()>> open;
        std::vector<std::vector<std::function<void()>>> committed;
        bool started = false;
    };
    std::map<int, Group> groups;

  private:
    static constexpr size_t kStack = 128 * 1024;
    struct Fiber {
        ucontext_t context;
        jmp_buf state;
        std::unique_ptr<char[]> stack;
        bool started = false, done = false;
        const uint64_t* word = nullptr;  // what it waits for, and the value to be left
        uint64_t old = 0;
        bool ready() const { return !done && (!word || *word != old); }
        std::vector<std::vector<Copy>> copies{{}};
    };
    struct Meeting {
        Brought brought;
        int arrived = 0;
        uint64_t round = 0;
    };

    // Until the fiber waits or ends. In a function of its own: longjmp spoils variables.
    __attribute__((noinline)) void resume(Fiber& fiber) {
        if (_setjmp(scheduler_) != 0) return;
        if (fiber.started) _longjmp(fiber.state, 1);
        fiber.started = true;
        setcontext(&fiber.context);
    }

    // One warp runs as far ahead of the others as it can: the first that is ready, or the last, or any. -1: none is.
    int next_warp() {
        const int warps = threads_ / 32, start = order == Order::random ? int(random_() % warps) : 0;
        for (int n = 0; n < warps; ++n) {
            const int warp = order == Order::lazy ? warps - 1 - n : (start + n) % warps;
            for (int i = 32 * warp; i < 32 * warp + 32; ++i)
                if (fibers_[i].ready()) return warp;
        }
        return -1;
    }

    static void enter() {
        Block& block = current();
        const int self = block.self_;
        block.body_();
        block.fibers_[self].done = true;
        _longjmp(block.scheduler_, 1);
    }

    inline static Block* current_ = nullptr;
    int threads_, self_ = 0, size_ = 0;
    std::mt19937_64 random_;
    std::vector<Fiber> fibers_;
    std::vector<uint32_t> storage_;
    char* memory_ = nullptr;
    jmp_buf scheduler_;
    std::function<void()> body_;
    std::map<std::pair<Kind, int>, Meeting> meetings_;
    std::vector<std::function<void()>> engine_;
    std::string fault_;
};

inline Block& block() { return Block::current(); }

// --- machine.h, in its order ---
inline int thread() { return block().self(); }
inline int block_x() { return block().x; }
inline int block_y() { return block().y; }
inline int block_z() { return block().z; }

inline void sync() { block().meet(Kind::block, block().threads()); }
inline bool sync_any(bool value) {
    struct Vote {
        bool mine, any;
    } vote{value, false};
    block().meet(Kind::vote, block().threads(), &vote, [](const Block::Brought& votes) {
        bool any = false;
        for (void* one : votes) any = any || static_cast<Vote*>(one)->mine;
        for (void* one : votes) static_cast<Vote*>(one)->any = any;
    });
    return vote.any;
}
inline void sync_warp() { block().meet(Kind::warp, 32); }

inline float exchange(float value, int from) {
    struct Slot {
        float in, out;
        int from;
    } slot{value, 0, from};
    block().meet(Kind::shuffle, 32, &slot, [](const Block::Brought& lanes) {
        for (void* lane : lanes) {
            Slot& one = *static_cast<Slot*>(lane);
            one.out = static_cast<Slot*>(lanes[one.from])->in;
        }
    });
    return slot.out;
}
inline float shuffle(float value, int lane) { return exchange(value, lane); }
inline int uniform(int value) { return int(exchange(float(value), 0)); }
inline float shuffle_xor(float value, int mask) { return exchange(value, (thread() & 31) ^ mask); }

inline float exp2(float x) { return std::exp2(x); }
inline float exp(float x) { return std::exp(x); }

template <class T>
inline uint32_t pack(float low, float high) {
    return Bits<T>::from_float(low) | uint32_t(Bits<T>::from_float(high)) << 16;
}

inline char* shared() { return block().memory(); }
inline uint32_t shared_address(const void* pointer) { return block().address(pointer); }

template <class T>
inline T shared_load(uint32_t address) {
    T value;
    std::memcpy(&value, block().at(address, sizeof(T)), sizeof(T));
    return value;
}
template <class T>
inline void shared_store(uint32_t address, T value) {
    std::memcpy(block().at(address, sizeof(T)), &value, sizeof(T));
}

struct alignas(16) Words {
    uint32_t word[4];
};
struct alignas(16) Floats {
    float value[4];
};

inline void perform(const Block::Copy& copy) {
    char* target = block().at(copy.target, 16);
    if (copy.exists)
        std::memcpy(target, copy.source, 16);
    else
        std::memset(target, 0, 16);
}
inline void copy_async(uint32_t address, const void* global, bool exists) {
    if (reinterpret_cast<uintptr_t>(global) % 16) block().fail("cp.async from a misaligned address");
    const Block::Copy copy{address, global, exists};
    const Order order = block().order;
    if (order == Order::eager || order == Order::mixed || (order == Order::random && block().coin()))
        perform(copy);
    else
        block().copies().back().push_back(copy);
}
inline void copy_commit() { block().copies().push_back({}); }
template <int pending>
inline void copy_wait() {
    auto& groups = block().copies();
    while (groups.size() > pending + 1) {
        for (const auto& copy : groups.front()) perform(copy);
        groups.erase(groups.begin());
    }
}

// Matrix i: lanes 8i.. give the rows' addresses; lane L receives of row L/4 columns 2(L%4) and the next, or,
// transposed, of column L/4 rows 2(L%4) and the next.
template <int kMatrices>
inline void load_matrices(uint32_t (&r)[kMatrices], uint32_t address, bool transposed) {
    struct Lane {
        uint32_t address;
        uint32_t* out;
    } lane{address, r};
    block().meet(Kind::matrices, 32, &lane, [transposed](const Block::Brought& lanes) {
        for (int i = 0; i < kMatrices; ++i) {
            uint16_t matrix[8][8];
            uint32_t rows[8];
            for (int row = 0; row < 8; ++row) {
                rows[row] = static_cast<Lane*>(lanes[8 * i + row])->address;
                std::memcpy(matrix[row], block().at(rows[row], 16), 16);
            }
            block().count_conflicts(rows);
            for (int l = 0; l < 32; ++l) {
                const int a = l / 4, b = l % 4 * 2;
                const uint16_t low = transposed ? matrix[b][a] : matrix[a][b];
                const uint16_t high = transposed ? matrix[b + 1][a] : matrix[a][b + 1];
                static_cast<Lane*>(lanes[l])->out[i] = low | uint32_t(high) << 16;
            }
        }
    });
}
inline void load_matrices(uint32_t (&r)[4], uint32_t address) { load_matrices<4>(r, address, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) { load_matrices<4>(r, address, true); }
inline void load_matrices_transposed(uint32_t (&r)[2], uint32_t address) { load_matrices<2>(r, address, true); }

// The fragments of m16n8k16 written out from the PTX manual, not from attention_maps.h: with group = lane / 4 and
// member = lane % 4, element i of A (0..7) is in row group (+ 8 for i = 2, 3, 6, 7), column 2 member + i % 2 (+ 8 for
// i >= 4); of B (0..3) in row 2 member + i % 2 (+ 8 for i >= 2), column group; of C (0..3) in row group (+ 8 for i >=
// 2), column 2 member + i % 2.
inline int manual_a_row(int lane, int i) { return lane / 4 + (i == 2 || i == 3 || i == 6 || i == 7 ? 8 : 0); }
inline int manual_a_column(int lane, int i) { return lane % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0); }
inline int manual_b_row(int lane, int i) { return lane % 4 * 2 + i % 2 + (i >= 2 ? 8 : 0); }
inline int manual_b_column(int lane, int) { return lane / 4; }
inline int manual_c_row(int lane, int i) { return lane / 4 + (i >= 2 ? 8 : 0); }
inline int manual_c_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

template <class T>
inline float half_of(uint32_t pair, int i) {
    return Bits<T>::to_float(uint16_t(pair >> 16 * (i & 1)));
}

template <class T>
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Lane {
        float* c;
        const uint32_t* a;
        uint32_t b[2];
    } lane{c, a, {b0, b1}};
    block().meet(Kind::mma, 32, &lane, [](const Block::Brought& lanes) {
        float A[16][16], B[16][8];
        for (int l = 0; l < 32; ++l) {
            const Lane& one = *static_cast<Lane*>(lanes[l]);
            for (int i = 0; i < 8; ++i) A[manual_a_row(l, i)][manual_a_column(l, i)] = half_of<T>(one.a[i / 2], i);
            for (int i = 0; i < 4; ++i) B[manual_b_row(l, i)][manual_b_column(l, i)] = half_of<T>(one.b[i / 2], i);
        }
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i) {
                float& c = static_cast<Lane*>(lanes[l])->c[i];
                double sum = c;
                for (int k = 0; k < 16; ++k) sum += double(A[manual_c_row(l, i)][k]) * B[k][manual_c_column(l, i)];
                c = float(sum);
            }
    });
}

// --- Hopper ---
using TensorMap = attention_kernels::MapPlan;

template <int count>
inline void fewer_registers() {}
template <int count>
inline void more_registers() {}

inline void barrier_start(uint32_t barrier, int arrivals) {
    block().at(barrier, 8);
    if (block().barriers.count(barrier)) block().fail("a barrier started twice");
    block().barriers[barrier].count = block().barriers[barrier].pending = arrivals;
}
inline void barriers_started() {}

inline Block::Barrier& barrier_of(uint32_t barrier) {
    const auto found = block().barriers.find(barrier);
    if (found == block().barriers.end()) block().fail("a barrier that was not started");
    return found->second;
}
inline void end_phase(Block::Barrier& barrier) {
    if (barrier.pending < 0) block().fail("too many arrivals at a barrier");
    if (barrier.pending > 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.count;
    ++barrier.phase;
}
inline void barrier_arrive(uint32_t at) {
    Block::Barrier& barrier = barrier_of(at);
    --barrier.pending;
    end_phase(barrier);
}
inline void barrier_expect(uint32_t at, int bytes) {
    barrier_of(at).bytes += bytes;
    barrier_arrive(at);
}
inline void barrier_wait(uint32_t at, int parity) {
    const Block::Barrier& barrier = barrier_of(at);
    if (int(barrier.phase & 1) == parity) block().wait(barrier.phase, barrier.phase);
}

inline void named_arrive(int name, int threads) {
    auto& [arrivals, round] = block().named[name];
    if (++arrivals == threads) {
        arrivals = 0;
        ++round;
    }
}
inline void named_sync(int name, int threads) {
    const uint64_t& round = block().named[name].second;
    const uint64_t before = round;
    named_arrive(name, threads);
    block().wait(round, before);
}

// The swizzle written out from the manual: in each 1,024 bytes, row r of 128 bytes keeps its 16-byte unit u at u ^ r.
inline char* swizzled(uint32_t address, int bytes) {
    const uint32_t unit = address / 16 % 8, row = address / 128 % 8;
    return block().at(address - 16 * unit + 16 * (unit ^ row), bytes);
}

inline void load_box(uint32_t target, const TensorMap& map, uint32_t at, int column, int token, int head, int image) {
    Block::Barrier& barrier = barrier_of(at);
    if (target % 1024) block().fail("a box that is not on 1,024 bytes");
    block().send([&map, &barrier, target, column, token, head, image] {
        for (uint32_t row = 0; row < map.rows; ++row)
            for (int c = 0; c < maps::kPanelColumns; ++c) {
                const uint64_t at[4] = {uint64_t(column + c), uint64_t(token + row), uint64_t(head), uint64_t(image)};
                bool inside = true;
                for (int d = 0; d < 4; ++d) inside = inside && at[d] < map.size[d];
                char* to = swizzled(target + row * 128 + c * 2, 2);
                const uint64_t offset =
                    at[0] * 2 + at[1] * map.stride[0] + at[2] * map.stride[1] + at[3] * map.stride[2];
                std::memset(to, 0, 2);
                if (inside) std::memcpy(to, map.data + offset, 2);
            }
        barrier.bytes -= map.rows * 128;
        end_phase(barrier);
    });
}

template <class Registers>
inline void hold(Registers&) {}

// A warpgroup's products wait in line; `start` must come between the last `finish` and the next product.
inline Block::Group& group_of() { return block().groups[thread() / 128]; }
inline void wgmma_start() {
    block().meet(Kind::wgmma, 128, nullptr, [](const Block::Brought&) { group_of().started = true; });
}
inline void wgmma_commit() {
    block().meet(Kind::wgmma, 128, nullptr, [](const Block::Brought&) {
        group_of().committed.push_back(std::move(group_of().open));
        group_of().open.clear();
    });
}
template <int pending>
inline void wgmma_finish() {
    block().meet(Kind::wgmma, 128, nullptr, [](const Block::Brought&) {
        Block::Group& group = group_of();
        if (!group.open.empty()) block().fail("wgmma waits for products that were not committed");
        while (group.committed.size() > pending) {
            for (const auto& product : group.committed.front()) product();
            group.committed.erase(group.committed.begin());
        }
        group.started = false;
    });
}

// The matrix descriptor, taken apart by the manual.
struct Described {
    explicit Described(uint64_t bits)
        : start(uint32_t(bits & 0x3fff) * 16),
          leading(uint32_t(bits >> 16 & 0x3fff) * 16),
          stride(uint32_t(bits >> 32 & 0x3fff) * 16) {
        if (bits >> 62 != 1 || (bits >> 46 & 0xffff) != 0) block().fail("not a descriptor of 128-byte swizzle, base 0");
    }
    // Row n of A or column n of B, the sum's index k contiguous: atoms of eight rows.
    uint16_t k_major(int n, int k) const { return value(n / 8 * stride + n % 8 * 128 + k * 2); }
    // n contiguous: 64 of them and eight of k an atom.
    uint16_t n_major(int n, int k) const { return value(n / 64 * leading + k / 8 * stride + k % 8 * 128 + n % 64 * 2); }
    uint16_t value(uint32_t offset) const {
        uint16_t bits;
        std::memcpy(&bits, swizzled(start + offset, 2), 2);
        return bits;
    }
    uint32_t start, leading, stride;
};

// d [64][N]: warp w holds rows 16 w.., every eight columns as C of m16n8k16; A in registers likewise.
template <class T, int kCount>
inline void multiply_wgmma(float (&d)[kCount], const uint32_t* a_registers, uint64_t a, uint64_t b, bool more) {
    constexpr int N = 2 * kCount;
    struct Thread {
        float* d;
        const uint32_t* a;
    } mine{d, a_registers};
    block().meet(Kind::wgmma, 128, &mine, [a, b, more](const Block::Brought& brought) {
        std::array<Thread, 128> threads;
        for (int i = 0; i < 128; ++i) threads[i] = *static_cast<Thread*>(brought[i]);
        Block::Group& group = group_of();
        if (!group.started) block().fail("wgmma without a start");
        auto product = [threads, a, b, more] {
            static float A[64][16], B[16][N];
            const Described rows(a ? a : b), columns(b);
            for (int k = 0; k < 16; ++k) {
                for (int n = 0; n < N; ++n)
                    B[k][n] = Bits<T>::to_float(a ? columns.k_major(n, k) : columns.n_major(n, k));
                for (int m = 0; a && m < 64; ++m) A[m][k] = Bits<T>::to_float(rows.k_major(m, k));
            }
            for (int t = 0; !a && t < 128; ++t)
                for (int i = 0; i < 8; ++i)
                    A[t / 32 * 16 + manual_a_row(t % 32, i)][manual_a_column(t % 32, i)] =
                        half_of<T>(threads[t].a[i / 2], i);
            for (int t = 0; t < 128; ++t)
                for (int i = 0; i < kCount; ++i) {
                    const int m = t / 32 * 16 + manual_c_row(t % 32, i % 4),
                              n = i / 4 * 8 + manual_c_column(t % 32, i % 4);
                    double sum = more ? threads[t].d[i] : 0.0f;
                    for (int k = 0; k < 16; ++k) sum += double(A[m][k]) * B[k][n];
                    threads[t].d[i] = float(sum);
                }
        };
        // Products are done in order, so an early one only if none waits.
        const bool idle = group.open.empty() && group.committed.empty();
        if (idle && (block().order == Order::eager || (block().order == Order::random && block().coin())))
            product();
        else
            group.open.push_back(product);
    });
}
template <class T, int kCount>
inline void wgmma_described(float (&d)[kCount], uint64_t a, uint64_t b, bool more) {
    multiply_wgmma<T>(d, nullptr, a, b, more);
}
template <class T, int kCount>
inline void wgmma_registers(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b) {
    multiply_wgmma<T>(d, a, 0, b, true);
}

}  // namespace hotloop::machine
