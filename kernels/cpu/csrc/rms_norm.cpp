// RMSNorm of a few tokens; kernels/rms_norm.py says what it means. PyTorch's own is several
// times slower for one token, and there are two in every layer.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>

#include "require.h"
#include "tensors.h"

namespace prosparse {
namespace {

constexpr int64_t kPartials = 16;  // sums in flight, added in a fixed order

float mean_square(const float* x, int64_t n) {
  float sums[kPartials] = {};
  int64_t i = 0;
  for (; i + kPartials <= n; i += kPartials)
    for (int64_t j = 0; j < kPartials; ++j) sums[j] += x[i + j] * x[i + j];
  for (; i < n; ++i) sums[i % kPartials] += x[i] * x[i];
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum / static_cast<float>(n);
}

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
  for (int64_t t = 0; t < x.size(0); ++t, from += n, to += n) {
    const float factor = 1 / std::sqrt(mean_square(from, n) + static_cast<float>(eps));
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] * factor * scale[i];
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("rms_norm", TORCH_BOX(&rms_norm)); }

}  // namespace prosparse
