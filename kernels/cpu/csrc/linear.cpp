// y = weight x for 1 to 16 tokens; kernels/linear.py says what it means.
#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "parallel.h"
#include "tensors.h"

namespace prosparse {
namespace {

constexpr int64_t kTask = 32;  // rows

Tensor linear(const Tensor& x, const Tensor& weight) {
  const Input in = read_input("linear", x);
  const Matrix w = read_matrix("linear", "weight", weight, in.columns);
  Tensor out = torch::stable::new_empty(x, {in.tokens, w.rows});
  void* to = out.mutable_data_ptr();
  const RowKernels& kernels = row_kernels();
  parallel_tasks((w.rows + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t begin = task * kTask, n = std::min(kTask, w.rows - begin);
    float y[kMaxTokens][kTask];
    for (int64_t first = 0; first < n; first += kRows) {
      const void *rows[kRows], *next[kRows];
      for (int64_t i = 0; i < kRows; ++i) {
        rows[i] = w.row(begin + std::min(first + i, n - 1));
        next[i] = w.row(std::min(begin + first + kRows + i, w.rows - 1));
      }
      float sums[kRows * kMaxTokens];
      kernels.dot[w.format](rows, next, in.data, in.stride, in.tokens, in.columns, sums);
      for (int64_t i = 0; i < std::min(kRows, n - first); ++i)
        for (int64_t t = 0; t < in.tokens; ++t) y[t][first + i] = sums[i * in.tokens + t];
    }
    for (int64_t t = 0; t < in.tokens; ++t) write_row(y[t], n, in.format, to, t * w.rows + begin);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("linear", TORCH_BOX(&linear)); }

}  // namespace prosparse
