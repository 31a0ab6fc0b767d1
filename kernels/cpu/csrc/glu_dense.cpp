// A whole gated FFN that computes every neuron; kernels/glu_dense.py says what it means.
#include <torch/csrc/stable/library.h>

#include "ffn.h"

namespace prosparse {
namespace {

Tensor glu_dense(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down, int64_t kind,
                 double threshold, bool on_up, const Tensor& tally) {
  const Activation activation = read_activation("glu_dense", kind, threshold, on_up);
  return whole_ffn("glu_dense", x, gate, up, down, activation, tally, /*dense=*/true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("glu_dense", TORCH_BOX(&glu_dense)); }

}  // namespace prosparse
