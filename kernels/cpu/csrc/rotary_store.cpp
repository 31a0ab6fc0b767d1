// Rotates queries and keys and fills the cache; kernels/rotary_store.py says what it means. In PyTorch it is a dozen
// small ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "rotary_store.h"

namespace prosparse {
namespace {

const float* read_floats(const char* name, const Tensor& tensor) {
  require(tensor.is_cpu() && tensor.dim() == 2 && tensor.is_contiguous() &&
              read_format("rotary_store", name, tensor) == kFp32,
          "rotary_store: ", name, " must be a contiguous float32 matrix on the CPU");
  return static_cast<const float*>(tensor.const_data_ptr());
}

Tensor rotary_store(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& keys, const Tensor& values,
                    int64_t start) {
  constexpr const char* op = "rotary_store";
  const Cached k = read_cached(op, "keys", keys), v = read_cached(op, "values", values);
  const float *x = read_floats("qkv", qkv), *c = read_floats("cos", cos), *s = read_floats("sin", sin);
  const int64_t rows = qkv.size(0), width = qkv.size(1), head_dim = k.head_dim, half = head_dim / 2;
  require(k.heads == v.heads && k.length == v.length && head_dim == v.head_dim && k.format == v.format && half > 0 &&
              head_dim == 2 * half,
          op, ": keys and values must agree, with an even head_dim");
  const int64_t heads = width / head_dim - 2 * k.heads;
  require(heads > 0 && width == (heads + 2 * k.heads) * head_dim && start >= 0 && k.length == start + rows, op,
          ": qkv does not fit the cache");
  require(cos.size(0) == rows && sin.size(0) == rows && cos.size(1) == half && sin.size(1) == half, op,
          ": cos and sin must be [rows, head_dim / 2]");

  Tensor out = torch::stable::new_empty(qkv, {rows, heads, head_dim});
  float* q = static_cast<float*>(out.mutable_data_ptr());
  rotate_and_store(x, rows, heads, c, s, k, v, start, q);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("rotary_store", TORCH_BOX(&rotary_store)); }

}  // namespace prosparse
