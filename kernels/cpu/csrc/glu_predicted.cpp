// kernels/glu_predicted.py says what it means.
#include <torch/csrc/stable/library.h>

#include "ffn.h"

namespace prosparse {
namespace {

Tensor glu_predicted(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down, const Tensor& index,
                     const Tensor& count, int64_t kind, double threshold, bool on_up, const Tensor& tally) {
  constexpr const char* op = "glu_predicted";
  return whole_ffn(op, x, gate, up, down, read_activation(op, kind, threshold, on_up), tally, false, &index, &count);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("glu_predicted", TORCH_BOX(&glu_predicted)); }

}  // namespace prosparse
