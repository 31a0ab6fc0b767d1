// Our own threads, because a decode step is hundreds of short parallel regions and each must survive a busy machine.
//
// A region ends when its tasks are done, not when every thread has come by: a worker that the system has put aside is
// not waited for unless it holds a task. (A region of PyTorch's OpenMP pool waits for all its threads, and beside other
// processes that can be a scheduling slice of 8 ms, many times what the work takes.)
#pragma once

#include <cstdint>

namespace prosparse {

// Where a thread stands: the task that it takes next if no other thread does before (its own at the end), and whether it
// is the caller, who takes tasks from the front.
struct Seat {
  int64_t then;
  bool front;
};

typedef void (*Task)(const void* context, int64_t i, Seat seat);

// Runs every task i < n once, on up to `threads` threads; returns when all are done. The caller takes tasks from the
// front and the workers from the back, so that a thread walks through memory in one direction; which thread runs which
// task is left open. While another thread's region runs, this one is computed by its caller alone.
void run_tasks(int64_t n, int64_t threads, Task task, const void* context);

}  // namespace prosparse
