// A pool of threads that sleep between jobs.
#pragma once

#include <cstdint>

namespace hotloop {

// How many threads a job may take, the caller among them: the usable cores, unless set.
int threads();
void set_threads(int count);  // at least 1

namespace detail {
void run_chunks(int64_t chunks, void (*run)(const void* body, int64_t chunk), const void* body);
}

// Calls body(chunk) once for every chunk in 0..chunks, on the caller's thread and the pool's, in any order; returns when
// all are done. The body must not throw. Results must not depend on which thread takes a chunk, so that they are the
// same for every count of threads. A job that starts while another runs, in another thread or inside a body, runs on
// its caller's thread alone. After fork() the child makes threads of its own.
template <class Body>
void parallel_for(int64_t chunks, const Body& body) {
    const auto run = [](const void* b, int64_t chunk) { (*static_cast<const Body*>(b))(chunk); };
    detail::run_chunks(chunks, run, &body);
}

// Whether this many values touched are worth the wake-up of threads. It takes the caller 5 us, and where other programs
// hold the cores it buys nothing and may wait milliseconds for a worker that lost its core. This many values take one
// thread 25 to 50 us.
constexpr bool worth_waking(int64_t values) { return values >= 1 << 17; }

// Calls body(first, end) for ranges that cover 0..units, each of enough work, in values touched, to be worth a turn of a
// thread. Ranges do not depend on the count of threads.
template <class Body>
void parallel_ranges(int64_t units, int64_t work_of_unit, const Body& body) {
    if (!worth_waking(units * work_of_unit)) {
        if (units > 0) body(int64_t{0}, units);
        return;
    }
    constexpr int64_t kWork = 1 << 15;
    const int64_t range = work_of_unit >= kWork ? 1 : kWork / (work_of_unit > 0 ? work_of_unit : 1);
    parallel_for((units + range - 1) / range, [&](int64_t chunk) {
        const int64_t end = (chunk + 1) * range;
        body(chunk * range, end < units ? end : units);
    });
}

// Room for this many floats, the thread's own until it asks again.
float* scratch(int64_t count);

}  // namespace hotloop
