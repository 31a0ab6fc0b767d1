// A whole gated FFN that skips closed neurons; kernels/glu_exact.py says what it means.
#include <torch/csrc/stable/library.h>

#include "ffn.h"

namespace prosparse {
namespace {

Tensor glu_exact(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down, int64_t kind,
                 double threshold, bool on_up, const Tensor& tally) {
  const Activation activation = read_activation("glu_exact", kind, threshold, on_up);
  return whole_ffn("glu_exact", x, gate, up, down, activation, tally, /*dense=*/false);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("glu_exact", TORCH_BOX(&glu_exact)); }

}  // namespace prosparse
