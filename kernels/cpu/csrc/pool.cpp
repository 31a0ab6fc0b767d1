#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace prosparse {
namespace {

// An idle worker spins this long before it sleeps: the gaps between the ops of one token are shorter, waking it takes
// about 50 us, and nothing spins for long after the last op.
constexpr auto kSpin = std::chrono::microseconds(200);

constexpr int kPatience = 2000;  // pauses before the owner of a region sleeps as well: about 50 us

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // waits until the pipeline is empty; most cores do not wait at `yield`
#else
  std::this_thread::yield();
#endif
}

// The state of a region in one word, so that a task is claimed in one step: a late worker can never claim a task of a
// region that has ended, since none is left of it. Tasks from front to back - 1 are left.
struct Ticket {
  static constexpr int64_t kMostTasks = 0xffff;
  static uint64_t make(uint64_t region, uint64_t n) { return region << 48 | n << 32 | n; }
  static int64_t n(uint64_t ticket) { return ticket >> 32 & 0xffff; }
  static int64_t front(uint64_t ticket) { return ticket >> 16 & 0xffff; }
  static int64_t back(uint64_t ticket) { return ticket & 0xffff; }
  static uint64_t without_front(uint64_t ticket) { return ticket + (1 << 16); }
  static uint64_t without_back(uint64_t ticket) { return ticket - 1; }
};

class Pool {
 public:
  bool try_run(int64_t n, int64_t threads, Task task, const void* context) {
    std::unique_lock<std::mutex> owner(busy_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    const int64_t helpers = hire(std::min(threads, n) - 1);
    task_ = task;
    context_ = context;
    finished_.store(0, std::memory_order_relaxed);
    helpers_.store(helpers, std::memory_order_relaxed);
    ticket_.store(Ticket::make(++region_, n), std::memory_order_seq_cst);
    if (helpers > 0 && sleeping_.load(std::memory_order_seq_cst) > 0) ticket_.notify_all();
    work(0);
    wait_for_last(n);
    return true;
  }

 private:
  // Workers there are for a region, up to `wanted`; new ones are started where the system allows.
  int64_t hire(int64_t wanted) {
    for (; workers_ < wanted; ++workers_) {
      try {
        std::thread(&Pool::serve, this, workers_).detach();
      } catch (const std::system_error&) {
        break;
      }
    }
    return std::min(wanted, workers_);
  }

  // Runs tasks until none is left to claim: forward for the owner of the region (0 helpers beside), else backward.
  void work(int64_t helpers) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (Ticket::front(ticket) < Ticket::back(ticket)) {
      const uint64_t claimed = helpers == 0 ? Ticket::without_front(ticket) : Ticket::without_back(ticket);
      if (!ticket_.compare_exchange_weak(ticket, claimed, std::memory_order_acq_rel)) continue;
      // Until this task is counted as finished, its region cannot end: task_ and context_ are those of the ticket.
      const int64_t first = Ticket::front(ticket), last = Ticket::back(ticket) - 1;
      if (helpers == 0)
        task_(context_, first, {std::min(first + 1, last), true});
      else
        task_(context_, last, {std::max(last - helpers, first), false});
      if (finished_.fetch_add(1, std::memory_order_release) + 1 == Ticket::n(ticket)) finished_.notify_all();
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  // Tasks that workers still hold. A worker may have been put aside in the middle of one: after a while this thread
  // sleeps, which leaves its core to that worker.
  void wait_for_last(int64_t n) {
    int64_t done = finished_.load(std::memory_order_acquire);
    for (int i = 0; done < n; done = finished_.load(std::memory_order_acquire)) {
      if (++i < kPatience)
        relax();
      else
        finished_.wait(done, std::memory_order_acquire);
    }
  }

  [[noreturn]] void serve(int64_t number) {
    for (;;) {
      const int64_t helpers = helpers_.load(std::memory_order_relaxed);
      if (number < helpers) work(helpers);
      await(ticket_.load(std::memory_order_acquire));
    }
  }

  // Returns when there is another region than the one of `seen`.
  void await(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (ticket_.load(std::memory_order_relaxed) != seen) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < until);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    ticket_.wait(seen, std::memory_order_seq_cst);
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
  }

  std::mutex busy_;
  int64_t workers_ = 0;  // guarded by busy_, like region_
  uint64_t region_ = 0;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> finished_{0};
  std::atomic<int64_t> helpers_{0};  // workers with a smaller number take part
  std::atomic<int64_t> sleeping_{0};
  Task task_ = nullptr;  // written between regions only
  const void* context_ = nullptr;
};

// Never destroyed: its threads live as long as the process. A fork has none of them, so it starts another pool.
std::atomic<Pool*> current{nullptr};

Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
  (void)registered;
  Pool* found = current.load();
  if (found == nullptr) {
    Pool* fresh = new Pool;
    if (current.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;
  }
  return *found;
}

}  // namespace

void run_tasks(int64_t n, int64_t threads, Task task, const void* context) {
  if (n > 1 && threads > 1 && n <= Ticket::kMostTasks && pool().try_run(n, threads, task, context)) return;
  for (int64_t i = 0; i < n; ++i) task(context, i, {std::min(i + 1, n - 1), true});
}

}  // namespace prosparse
