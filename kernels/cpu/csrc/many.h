// Elementwise work on the many tokens of a prefill. It runs between PyTorch's GEMMs, so it uses PyTorch's threads: ours
// would meet them spinning.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace prosparse {

constexpr int64_t kPiece = 1024;  // elements: fp32 copies of a few of them stay in the first-level cache

// f(first, n) for pieces of `count` elements, on several threads.
template <class F>
void for_pieces(int64_t count, const F& f) {
  constexpr int64_t kLeast = 16;  // pieces that are worth a thread
  torch::stable::parallel_for(0, (count + kPiece - 1) / kPiece, kLeast, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i * kPiece, std::min(kPiece, count - i * kPiece));
  });
}

}  // namespace prosparse
