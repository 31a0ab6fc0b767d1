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
  const float *c = read_floats("cos", cos), *s = read_floats("sin", sin);
  require(qkv.is_cpu() && qkv.dim() == 2 && qkv.is_contiguous(), op, ": qkv must be a contiguous matrix on the CPU");
  const Format format = read_format(op, "qkv", qkv);
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
  const void* from = qkv.const_data_ptr();
  void* to = out.mutable_data_ptr();
  constexpr int64_t kLeast = kMaxTokens + 1;  // a step of decoding is one thread's
  torch::stable::parallel_for(0, rows, kLeast, [&](int64_t begin, int64_t end) {
    float* x = workspace().heads.at_least(width);
    float* q = workspace().queries.at_least(heads * head_dim);
    for (int64_t r = begin; r < end; ++r) {
      read_row(from, width, format, r * width, x);
      rotate_and_store(x, 1, heads, c + r * half, s + r * half, k, v, start + r, q);
      write_row(q, heads * head_dim, format, to, r * heads * head_dim);
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("rotary_store", TORCH_BOX(&rotary_store)); }

}  // namespace prosparse
