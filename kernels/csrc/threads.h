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

// Chunks of about this much work are worth a wake-up, which costs some microseconds: `work` is in values touched.
constexpr int64_t kChunkWork = 1 << 15;
inline int64_t units_per_chunk(int64_t work_of_unit) {
    return work_of_unit >= kChunkWork ? 1 : kChunkWork / (work_of_unit > 0 ? work_of_unit : 1);
}

}  // namespace hotloop
