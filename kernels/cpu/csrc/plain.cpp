// FFNs without up projection; kernels/plain_exact.py, plain_dense.py and plain_predicted.py say what they mean.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "ffn.h"
#include "require.h"

namespace prosparse {
namespace {

const float* read_bias(const char* op, const char* name, const std::optional<Tensor>& bias, int64_t n) {
  if (!bias.has_value()) return nullptr;
  require(bias->is_cpu() && bias->dim() == 1 && bias->is_contiguous() && bias->numel() == n &&
              read_format(op, name, *bias) == kFp32,
          op, ": ", name, " must be ", n, " contiguous float32 numbers on the CPU");
  return static_cast<const float*>(bias->const_data_ptr());
}

Tensor plain_ffn(const char* op, const Tensor& x, const Tensor& gate, const std::optional<Tensor>& gate_bias,
                 const Tensor& down, const std::optional<Tensor>& down_bias, int64_t kind, double threshold,
                 const Tensor& tally, bool dense, const Tensor* index = nullptr, const Tensor* listed = nullptr) {
  Input in = read_input(op, x);
  const Matrix g = read_matrix(op, "gate", gate, in.columns), d = read_matrix(op, "down", down, in.columns);
  require(g.rows == d.rows, op, ": gate and down have ", g.rows, " and ", d.rows, " neurons; they must agree");
  require(g.format == d.format, op, ": gate and down must share a dtype");
  Glu ffn{g, d, d, read_activation(op, kind, threshold, /*on_up=*/false), dense};
  ffn.has_up = false;
  ffn.gate_bias = read_bias(op, "gate_bias", gate_bias, g.rows);
  const float* bias = read_bias(op, "down_bias", down_bias, in.columns);
  Given given;
  if (index != nullptr) {
    given = read_list(op, *index, *listed, g.rows);
    ffn.given = &given;
  }
  int64_t* count = read_tally(op, tally);
  prepare(in, g.format);
  Tensor out = torch::stable::new_empty(x, {in.tokens, in.columns});
  void* to = out.mutable_data_ptr();
  run_glu(ffn, in, count, [&](int64_t t, int64_t begin, int64_t n, float* y) {
    if (bias != nullptr)
      for (int64_t i = 0; i < n; ++i) y[i] += bias[begin + i];
    write_row(y, n, in.format, to, t * in.columns + begin);
  });
  return out;
}

Tensor plain_exact(const Tensor& x, const Tensor& gate, std::optional<Tensor> gate_bias, const Tensor& down,
                   std::optional<Tensor> down_bias, int64_t kind, double threshold, const Tensor& tally) {
  return plain_ffn("plain_exact", x, gate, gate_bias, down, down_bias, kind, threshold, tally, /*dense=*/false);
}

Tensor plain_dense(const Tensor& x, const Tensor& gate, std::optional<Tensor> gate_bias, const Tensor& down,
                   std::optional<Tensor> down_bias, int64_t kind, double threshold, const Tensor& tally) {
  return plain_ffn("plain_dense", x, gate, gate_bias, down, down_bias, kind, threshold, tally, /*dense=*/true);
}

Tensor plain_predicted(const Tensor& x, const Tensor& gate, std::optional<Tensor> gate_bias, const Tensor& down,
                       std::optional<Tensor> down_bias, const Tensor& index, const Tensor& count, int64_t kind,
                       double threshold, const Tensor& tally) {
  return plain_ffn("plain_predicted", x, gate, gate_bias, down, down_bias, kind, threshold, tally, /*dense=*/false,
                   &index, &count);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) {
  m.impl("plain_exact", TORCH_BOX(&plain_exact));
  m.impl("plain_dense", TORCH_BOX(&plain_dense));
  m.impl("plain_predicted", TORCH_BOX(&plain_predicted));
}

}  // namespace prosparse
