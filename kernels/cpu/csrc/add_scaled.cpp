// The add behind a block of the prefill; kernels/add_scaled.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "isa.h"
#include "many.h"
#include "require.h"
#include "tensors.h"

namespace prosparse {
namespace {

Tensor add_scaled(const Tensor& residual, const Tensor& x, double scale) {
  constexpr const char* op = "add_scaled";
  for (const Tensor* tensor : {&residual, &x})
    require(tensor->is_cpu() && tensor->is_contiguous() && tensor->dim() == 2, op,
            ": residual and x must be contiguous matrices on the CPU");
  require(residual.size(0) == x.size(0) && residual.size(1) == x.size(1), op, ": residual and x must have one shape");
  require(read_format(op, "residual", residual) == kFp32, op, ": residual must be float32");
  const Format format = read_format(op, "x", x);
  Tensor out = torch::stable::new_empty(residual, {residual.size(0), residual.size(1)});
  const float* onto = static_cast<const float*>(residual.const_data_ptr());
  const void* from = x.const_data_ptr();
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const float factor = static_cast<float>(scale);
  const auto axpy = row_kernels().axpy[kFp32];  // what decode_layers adds with, so that both give the same bits
  for_pieces(residual.size(0) * residual.size(1), [&](int64_t first, int64_t n) {
    float added[kPiece], sums[kPiece];
    read_row(from, n, format, first, added);
    std::memcpy(sums, onto + first, n * sizeof(float));
    const int64_t padded = round_up(n, kPadding);
    std::memset(added + n, 0, (padded - n) * sizeof(float));
    std::memset(sums + n, 0, (padded - n) * sizeof(float));
    const void* rows[kRows] = {added, added, added, added};
    axpy(rows, rows, &factor, 1, padded, sums);
    std::memcpy(to + first, sums, n * sizeof(float));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("add_scaled", TORCH_BOX(&add_scaled)); }

}  // namespace prosparse
