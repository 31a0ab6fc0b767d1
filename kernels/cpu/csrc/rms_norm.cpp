// RMSNorm; kernels/rms_norm.py says what it means. PyTorch's own is several times slower for one token, and there are
// two in every layer.
#include "rms_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include "require.h"
#include "tensors.h"
#include "workspace.h"

namespace prosparse {
namespace {

const float* read_floats(const char* name, const Tensor& tensor) {
  require(tensor.is_cpu() && tensor.is_contiguous() &&
              tensor.scalar_type() == torch::headeronly::ScalarType::Float,
          "rms_norm: ", name, " must be a contiguous float32 tensor on the CPU");
  return static_cast<const float*>(tensor.const_data_ptr());
}

void require_fit(const Tensor& x, const Tensor& weight) {
  require(x.dim() == 2 && weight.dim() == 1 && x.size(1) == weight.size(0),
          "rms_norm: x must be [tokens, hidden] and weight [hidden]");
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const float *from = read_floats("x", x), *scale = read_floats("weight", weight);
  require_fit(x, weight);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const int64_t n = x.size(1);
  for (int64_t t = 0; t < x.size(0); ++t, from += n, to += n) normalize(from, n, scale, static_cast<float>(eps), to);
  return out;
}

// Many tokens, on PyTorch's threads: what follows is one of its GEMMs.
void rms_norm_to(const Tensor& x, const Tensor& weight, double eps, const Tensor& out) {
  const float *from = read_floats("x", x), *scale = read_floats("weight", weight);
  require_fit(x, weight);
  const int64_t tokens = x.size(0), n = x.size(1);
  require(out.is_cpu() && out.is_contiguous() && out.dim() == 2 && out.size(0) == tokens && out.size(1) == n,
          "rms_norm: out must be contiguous, of the shape of x, on the CPU");
  const Format format = read_format("rms_norm", "out", out);
  void* to = out.mutable_data_ptr();
  constexpr int64_t kLeast = 8;  // tokens that are worth a thread
  torch::stable::parallel_for(0, tokens, kLeast, [&](int64_t begin, int64_t end) {
    float* normed = workspace().normed.at_least(n);
    for (int64_t t = begin; t < end; ++t) {
      normalize(from + t * n, n, scale, static_cast<float>(eps), normed);
      write_row(normed, n, format, to, t * n);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_to", TORCH_BOX(&rms_norm_to));
}

}  // namespace prosparse
