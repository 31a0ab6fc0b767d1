// y = weight x for 1 to 16 tokens; kernels/linear.py says what it means.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "course.h"
#include "isa.h"
#include "parallel.h"
#include "tensors.h"

namespace prosparse {
namespace {

// Bytes that a thread takes at a time: fewer balance better, more make longer streams.
constexpr int64_t kTaskBytes = 96 << 10;
constexpr int64_t kMostRows = 128;  // of a task

Tensor linear(const Tensor& x, const Tensor& weight) {
  Input in = read_input("linear", x);
  const Matrix w = read_matrix("linear", "weight", weight, in.columns);
  prepare(in, w.format);
  Tensor out = torch::stable::new_empty(x, {in.tokens, w.rows});
  void* to = out.mutable_data_ptr();
  const RowKernels& kernels = row_kernels();
  const int64_t size = round_up(std::clamp<int64_t>(kTaskBytes / w.bytes, 1, kMostRows), kRows);
  const int64_t tasks = (w.rows + size - 1) / size;
  parallel_tasks(tasks, [&](int64_t task, int64_t then) {
    const int64_t begin = task * size, n = std::min(size, w.rows - begin);
    Course course;
    course.add(w, begin, n);
    course.add(w, then * size, std::min(size, w.rows - then * size));
    float y[kMaxTokens][kMostRows];
    for (int64_t first = 0; first < n; first += kRows) {
      const void* rows[kRows];
      for (int64_t i = 0; i < kRows; ++i) rows[i] = w.row(begin + std::min(first + i, n - 1));
      float sums[kRows * kMaxTokens];
      kernels.dot[w.format](rows, course.ahead(first).rows, in.prepared, in.prepared_bytes, in.tokens, in.columns, sums);
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
