// Rows of the down projection for what is not zero; kernels/axpy_active.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "ffn.h"
#include "require.h"
#include "workspace.h"

namespace prosparse {
namespace {

constexpr const char* kOp = "axpy_active";

Tensor axpy_active(const Tensor& h, const Tensor& down, int64_t hidden, std::optional<Tensor> bias,
                   const Tensor& tally) {
  const Input in = read_input(kOp, h);
  const Matrix d = read_matrix(kOp, "down", down, hidden);
  require(d.rows == in.columns, kOp, ": h has ", in.columns, " neurons but down has ", d.rows);
  require(!bias.has_value() || (bias->is_cpu() && bias->is_contiguous() && bias->numel() == hidden &&
                                read_format(kOp, "bias", *bias) == kFp32),
          kOp, ": bias must be ", hidden, " contiguous float32 numbers on the CPU");
  const float* add = bias.has_value() ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  int64_t* count = read_tally(kOp, tally);

  const Input like{nullptr, in.tokens, hidden, round_up(hidden, kBlockColumns), in.format, nullptr, 0};  // y's sizes
  const Ffn ffn{row_kernels(), like, d, d, {Activation::kRelu, 0, false}, /*dense=*/false};
  const Chunks chunks(d.rows);
  Workspace& memory = workspace();
  int32_t* ids = memory.listed.at_least(d.rows);
  int32_t* live = memory.live.at_least(d.rows);
  float* value = memory.value.at_least(d.rows * in.tokens);
  Partials partials(like, d.format, chunks.count);
  parallel_tasks(chunks.count, [&](int64_t chunk, Seat) {
    const int64_t begin = chunks.begin(chunk), at = begin * in.tokens;
    int64_t n = 0;
    for (int64_t j = begin; j < chunks.end(chunk); ++j) {
      bool needed = false;
      for (int64_t t = 0; t < in.tokens; ++t) needed |= in.data[t * in.stride + j] != 0;
      if (!needed) continue;
      for (int64_t t = 0; t < in.tokens; ++t) value[at + n * in.tokens + t] = in.data[t * in.stride + j];
      ids[begin + n++] = static_cast<int32_t>(j);
    }
    if (n == 0) return;
    const Listed listed{ids + begin, n, value + at, in.tokens, 1};
    Course course;
    course.add(d, listed.ids, n);
    partials.count(chunk, ffn.add_products(listed, course, 0, value + at, live + begin, partials.clear(chunk)));
  });
  Tensor out = torch::stable::new_empty(h, {in.tokens, hidden});
  void* to = out.mutable_data_ptr();
  partials.sum(count, [&](int64_t t, int64_t begin, int64_t n, float* y) {
    if (add != nullptr)
      for (int64_t i = 0; i < n; ++i) y[i] += add[begin + i];
    write_row(y, n, in.format, to, t * hidden + begin);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("axpy_active", TORCH_BOX(&axpy_active)); }

}  // namespace prosparse
