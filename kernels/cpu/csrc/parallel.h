// Work for the pool, on as many threads as torch.set_num_threads says.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "pool.h"

namespace prosparse {

// f(i, seat) for every i < n, in any order; a free thread takes what is left, so a slow core delays nobody.
template <class F>
void parallel_tasks(int64_t n, const F& f) {
  run_tasks(n, torch::stable::get_num_threads(),
            [](const void* context, int64_t i, Seat seat) { (*static_cast<const F*>(context))(i, seat); }, &f);
}

}  // namespace prosparse
