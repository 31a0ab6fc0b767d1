// RMSNorm of a few tokens; kernels/rms_norm.py says what it means. PyTorch's own is several
// times slower for one token, and there are two in every layer.
#include "rms_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include "require.h"
#include "tensors.h"

namespace prosparse {
namespace {

const float* read_floats(const char* name, const Tensor& tensor) {
  require(tensor.is_cpu() && tensor.is_contiguous() &&
              tensor.scalar_type() == torch::headeronly::ScalarType::Float,
          "rms_norm: ", name, " must be a contiguous float32 tensor on the CPU");
  return static_cast<const float*>(tensor.const_data_ptr());
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const float *from = read_floats("x", x), *scale = read_floats("weight", weight);
  require(x.dim() == 2 && weight.dim() == 1 && x.size(1) == weight.size(0),
          "rms_norm: x must be [tokens, hidden] and weight [hidden]");
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const int64_t n = x.size(1);
  for (int64_t t = 0; t < x.size(0); ++t, from += n, to += n) normalize(from, n, scale, static_cast<float>(eps), to);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("rms_norm", TORCH_BOX(&rms_norm)); }

}  // namespace prosparse
