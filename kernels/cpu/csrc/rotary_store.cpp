// Rotates queries and keys and fills the cache; kernels/rotary_store.py says what it means. In PyTorch it is a dozen
// small ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cached.h"
#include "workspace.h"

namespace prosparse {
namespace {

const float* read_floats(const char* name, const Tensor& tensor) {
  require(tensor.is_cpu() && tensor.dim() == 2 && tensor.is_contiguous() &&
              read_format("rotary_store", name, tensor) == kFp32,
          "rotary_store: ", name, " must be a contiguous float32 matrix on the CPU");
  return static_cast<const float*>(tensor.const_data_ptr());
}

void rotate(const float* head, const float* cos, const float* sin, int64_t half, float* to) {
  const float *a = head, *b = head + half;
  for (int64_t i = 0; i < half; ++i) {
    to[i] = a[i] * cos[i] - b[i] * sin[i];
    to[half + i] = b[i] * cos[i] + a[i] * sin[i];
  }
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
  float* key = workspace().x.at_least(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    const float* head = x + r * width;
    for (int64_t h = 0; h < heads; ++h, head += head_dim, q += head_dim)
      rotate(head, c + r * half, s + r * half, half, q);
    for (int64_t h = 0; h < k.heads; ++h, head += head_dim) {
      rotate(head, c + r * half, s + r * half, half, key);
      write_row(key, head_dim, k.format, k.data, k.offset(h, start + r));
    }
    for (int64_t h = 0; h < v.heads; ++h, head += head_dim)
      write_row(head, head_dim, v.format, v.data, v.offset(h, start + r));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("rotary_store", TORCH_BOX(&rotary_store)); }

}  // namespace prosparse
