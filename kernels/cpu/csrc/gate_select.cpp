// The active neurons of a step and their gate values; kernels/gate_select.py says what it means.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "ffn.h"
#include "parallel.h"
#include "workspace.h"

namespace prosparse {
namespace {

std::tuple<Tensor, Tensor, Tensor> gate_select(const Tensor& x, const Tensor& gate, int64_t kind, double threshold) {
  using torch::headeronly::ScalarType;
  Input in = read_input("gate_select", x);
  const Matrix g = read_matrix("gate_select", "gate", gate, in.columns);
  const Activation activation = read_activation("gate_select", kind, threshold, false);
  prepare(in, g.format);
  Tensor index = torch::stable::new_empty(x, {g.rows}, ScalarType::Int);
  Tensor count = torch::stable::new_empty(x, {1}, ScalarType::Int);
  Tensor value = torch::stable::new_empty(x, {in.tokens, g.rows}, ScalarType::Float);
  const Chunks chunks(g.rows);
  const RowKernels& kernels = row_kernels();
  int32_t* ids = workspace().listed.at_least(g.rows);
  float* values = workspace().value.at_least(g.rows * in.tokens);
  int64_t found[Chunks::kMost];
  parallel_tasks(chunks.count, [&](int64_t chunk, Seat seat) {
    const int64_t begin = chunks.begin(chunk), end = chunks.end(chunk);
    Course course;
    course.add(g, begin, end - begin);
    course.add(g, chunks.begin(seat.then), chunks.end(seat.then) - chunks.begin(seat.then));
    found[chunk] = scan_gate(kernels, in, g, activation, {begin, end - begin, nullptr}, false, course, nullptr, nullptr, ids + begin,
                             values + begin * in.tokens);
  });
  int32_t* to_index = static_cast<int32_t*>(index.mutable_data_ptr());
  float* to_value = static_cast<float*>(value.mutable_data_ptr());
  int64_t slot = 0;
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    const int64_t begin = chunks.begin(chunk);
    for (int64_t k = 0; k < found[chunk]; ++k, ++slot) {
      to_index[slot] = ids[begin + k];
      for (int64_t t = 0; t < in.tokens; ++t) to_value[t * g.rows + slot] = values[(begin + k) * in.tokens + t];
    }
  }
  *static_cast<int32_t*>(count.mutable_data_ptr()) = static_cast<int32_t>(slot);
  return {index, count, value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("gate_select", TORCH_BOX(&gate_select)); }

}  // namespace prosparse
