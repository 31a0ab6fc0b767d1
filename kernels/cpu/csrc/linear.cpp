// kernels/linear.py says what it means.
#include "linear.h"

#include <torch/csrc/stable/library.h>

namespace prosparse {
namespace {

Tensor linear(const Tensor& x, const Tensor& weight) {
  Input in = read_input("linear", x);
  const Matrix w = read_matrix("linear", "weight", weight, in.columns);
  prepare(in, w.format);
  Tensor out = torch::stable::new_empty(x, {in.tokens, w.rows});
  void* to = out.mutable_data_ptr();
  multiply(in, w, [&](int64_t t, int64_t begin, int64_t n, const float* y) {
    write_row(y, n, in.format, to, t * w.rows + begin);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("linear", TORCH_BOX(&linear)); }

}  // namespace prosparse
