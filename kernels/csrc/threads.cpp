// The pool: workers wait on a condition variable, take chunks from a shared counter, and sleep again.

#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace hotloop {
namespace {

int usable_cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const unsigned count = std::thread::hardware_concurrency();
    return count ? static_cast<int>(count) : 1;
}

struct Job {
    void (*run)(const void*, int64_t) = nullptr;
    const void* body = nullptr;
    int64_t chunks = 0;
};

class Pool {
  public:
    // False when another job has the pool.
    bool run(const Job& job, int helpers) {
        if (busy_.exchange(true, std::memory_order_acquire)) return false;
        std::unique_lock<std::mutex> lock(mutex_);
        while (made_ < helpers && make_worker()) {
        }
        job_ = job;
        next_.store(0, std::memory_order_relaxed);
        const int joining = helpers < made_ ? helpers : made_;
        places_ = working_ = joining;
        lock.unlock();
        for (int i = 0; i < joining; ++i) wake_.notify_one();
        take_chunks(job);
        // A worker that has not yet woken has nothing left to do: its place is taken back, not waited for.
        lock.lock();
        working_ -= places_;
        places_ = 0;
        done_.wait(lock, [this] { return working_ == 0; });
        lock.unlock();
        busy_.store(false, std::memory_order_release);
        return true;
    }

  private:
    bool make_worker() {
        try {
            std::thread([this] { work(); }).detach();
        } catch (const std::system_error&) {  // no more threads here: the caller does their share
            return false;
        }
        ++made_;
        return true;
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return places_ > 0; });
            --places_;
            const Job job = job_;
            lock.unlock();
            take_chunks(job);
            lock.lock();
            if (--working_ == 0) done_.notify_one();
        }
    }

    void take_chunks(const Job& job) {
        for (;;) {
            const int64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
            if (chunk >= job.chunks) return;
            job.run(job.body, chunk);
        }
    }

    std::atomic<bool> busy_{false};
    std::atomic<int64_t> next_{0};
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Job job_;
    int made_ = 0;     // workers
    int places_ = 0;   // workers that may still join the job
    int working_ = 0;  // places that were given and are not done
};

// Never destroyed: its workers may outlive the statics of the process.
alignas(Pool) unsigned char storage[sizeof(Pool)];
Pool* pool = nullptr;
std::atomic<int> wanted{0};

// The child of a fork has the pool's memory and none of its threads: it starts with a new one.
void renew() { pool = new (storage) Pool; }

}  // namespace

int threads() {
    const int count = wanted.load(std::memory_order_relaxed);
    if (count > 0) return count;
    const int cores = usable_cores();
    int unset = 0;
    wanted.compare_exchange_strong(unset, cores);
    return wanted.load(std::memory_order_relaxed);
}

void set_threads(int count) { wanted.store(count < 1 ? 1 : count); }

void detail::run_chunks(int64_t chunks, void (*run)(const void*, int64_t), const void* body) {
    const int64_t most = chunks < threads() ? chunks : threads();
    if (most > 1) {
        static const bool ready = [] {
            renew();
#if !defined(_WIN32)
            pthread_atfork(nullptr, nullptr, renew);
#endif
            return true;
        }();
        static_cast<void>(ready);
        if (pool->run({run, body, chunks}, static_cast<int>(most) - 1)) return;
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) run(body, chunk);
}

float* scratch(int64_t count) {
    thread_local std::vector<float> room;
    if (static_cast<int64_t>(room.size()) < count) room.resize(count);
    return room.data();
}

}  // namespace hotloop
