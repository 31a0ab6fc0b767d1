// act(gate) * up of many tokens, in place of gate; kernels/glu_values.py says what it means.
#include <torch/csrc/stable/library.h>

#include "ffn.h"
#include "many.h"
#include "require.h"

namespace prosparse {
namespace {

// The product is formed for closed neurons too, and masked: so the loop becomes vectors.
template <Activation::Kind kKind, bool kOnUp>
void weigh(float* gate, const float* up, int64_t n, float threshold) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i], u = kOnUp && up[i] <= 0 ? 0 : up[i];
    const bool open = kKind == Activation::kFatrelu ? !(g < threshold) : !(g <= 0);
    const float value = kKind == Activation::kRelu2 ? g * g : g, h = value * u;
    const uint32_t keep = static_cast<uint32_t>(open) & static_cast<uint32_t>(value != 0);
    gate[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, h) & (0 - keep));
  }
}

template <Activation::Kind kKind>
auto weigh_of(bool on_up) {
  return on_up ? weigh<kKind, true> : weigh<kKind, false>;
}

int64_t elements(const char* name, const Tensor& tensor) {
  require(tensor.is_cpu() && tensor.is_contiguous() && tensor.dim() == 2, "glu_values: ", name,
          " must be a contiguous matrix on the CPU");
  return tensor.size(0) * tensor.size(1);
}

void glu_values(const Tensor& gate, const Tensor& up, int64_t kind, double threshold, bool on_up) {
  constexpr const char* op = "glu_values";
  const Activation act = read_activation(op, kind, threshold, on_up);
  const Format format = read_format(op, "gate", gate);
  const int64_t count = elements("gate", gate);
  require(elements("up", up) == count && up.size(0) == gate.size(0) && read_format(op, "up", up) == format, op,
          ": gate and up must have one shape and one dtype");
  require(act.kind != Activation::kSilu, op, ": silu is PyTorch's");
  const auto row = act.kind == Activation::kFatrelu ? weigh_of<Activation::kFatrelu>(on_up)
                   : act.kind == Activation::kRelu2 ? weigh_of<Activation::kRelu2>(on_up)
                                                    : weigh_of<Activation::kRelu>(on_up);
  void* h = gate.mutable_data_ptr();
  const void* with = up.const_data_ptr();
  for_pieces(count, [&](int64_t first, int64_t n) {
    float g[kPiece], u[kPiece];
    read_row(h, n, format, first, g);
    read_row(with, n, format, first, u);
    row(g, u, n, act.threshold);
    write_row(g, n, format, h, first);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("glu_values", TORCH_BOX(&glu_values)); }

}  // namespace prosparse
