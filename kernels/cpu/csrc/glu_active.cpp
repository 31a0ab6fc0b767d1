// Up and down of the listed neurons; kernels/glu_active.py says what it means.
#include <torch/csrc/stable/library.h>

#include "ffn.h"
#include "parallel.h"
#include "require.h"
#include "workspace.h"

namespace prosparse {
namespace {

Tensor glu_active(const Tensor& x, const Tensor& up, const Tensor& down, const Tensor& index, const Tensor& count,
                  const Tensor& value, bool on_up, const Tensor& tally) {
  constexpr const char* op = "glu_active";
  Input in = read_input(op, x);
  const Matrix u = read_matrix(op, "up", up, in.columns);
  const Matrix d = read_matrix(op, "down", down, in.columns);
  require(u.rows == d.rows, op, ": up has ", u.rows, " neurons but down has ", d.rows);
  require(u.format == d.format, op, ": up and down must share a dtype");
  const Given given = read_list(op, index, count, u.rows);
  const int32_t* ids = given.ids;
  const int64_t n = given.n, capacity = index.numel();
  const float* values = read_float_matrix(op, "value", value, in.tokens, capacity);
  int64_t* total = read_tally(op, tally);
  prepare(in, u.format);

  const RowKernels& kernels = row_kernels();
  const Ffn ffn{kernels, in, u, d, {Activation::kRelu, 0, on_up}, false};
  const Chunks chunks(u.rows);
  int32_t* live = workspace().live.at_least(n);
  float* product = workspace().product.at_least(n * in.tokens);
  Partials partials(in, d.format, chunks.count);
  parallel_tasks(chunks.count, [&](int64_t chunk, Seat) {
    const int64_t first = std::lower_bound(ids, ids + n, chunks.begin(chunk)) - ids;
    const int64_t last = std::lower_bound(ids + first, ids + n, chunks.end(chunk)) - ids;
    if (first == last) return;
    const Listed listed{ids + first, last - first, values + first, 1, capacity};
    Course course;
    course.add(u, listed.ids, listed.n);
    course.add(d, listed.ids, listed.n);
    partials.count(chunk, ffn.add(listed, course, 0, product + first * in.tokens, live + first, partials.clear(chunk)));
  });
  Tensor out = torch::stable::new_empty(x, {in.tokens, in.columns});
  void* to = out.mutable_data_ptr();
  partials.sum(total, [&](int64_t t, int64_t begin, int64_t size, const float* y) {
    write_row(y, size, in.format, to, t * in.columns + begin);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("glu_active", TORCH_BOX(&glu_active)); }

}  // namespace prosparse
