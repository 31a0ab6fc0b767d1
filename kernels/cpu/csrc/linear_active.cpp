// Rows of a product that a list names; kernels/linear_active.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "ffn.h"
#include "parallel.h"
#include "require.h"

namespace prosparse {
namespace {

constexpr const char* kOp = "linear_active";
constexpr int64_t kListed = 64;  // rows that a thread takes at a time

Tensor linear_active(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, const Tensor& index,
                     const Tensor& count, const Tensor& tally) {
  Input in = read_input(kOp, x);
  const Matrix w = read_matrix(kOp, "weight", weight, in.columns);
  const Given given = read_list(kOp, index, count, w.rows);
  require(!bias.has_value() || (bias->is_cpu() && bias->is_contiguous() && bias->numel() == w.rows &&
                                read_format(kOp, "bias", *bias) == kFp32),
          kOp, ": bias must be ", w.rows, " contiguous float32 numbers on the CPU");
  const float* add = bias.has_value() ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  read_tally(kOp, tally)[3] += given.n;  // PREDICTED of kernels/tally.py
  prepare(in, w.format);
  Tensor out = torch::stable::new_empty(x, {in.tokens, w.rows});
  void* to = out.mutable_data_ptr();
  std::memset(to, 0, in.tokens * w.rows * (in.format == kFp32 ? 4 : 2));
  const RowKernels& kernels = row_kernels();
  parallel_tasks((given.n + kListed - 1) / kListed, [&](int64_t task, Seat) {
    const int32_t* ids = given.ids + task * kListed;
    const int64_t n = std::min(kListed, given.n - task * kListed);
    Course course;
    course.add(w, ids, n);
    for (int64_t first = 0; first < n; first += kRows) {
      const void* rows[kRows];
      for (int64_t i = 0; i < kRows; ++i) rows[i] = w.row(ids[std::min(first + i, n - 1)]);
      float sums[kRows * kMaxTokens];
      kernels.dot[w.format](rows, course.ahead(first).rows, in.prepared, in.prepared_bytes, in.tokens, in.columns, sums);
      for (int64_t i = 0; i < std::min(kRows, n - first); ++i)
        for (int64_t t = 0; t < in.tokens; ++t) {
          const int64_t j = ids[first + i];
          const float y = sums[i * in.tokens + t] + (add == nullptr ? 0 : add[j]);
          write_row(&y, 1, in.format, to, t * w.rows + j);
        }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("linear_active", TORCH_BOX(&linear_active)); }

}  // namespace prosparse
