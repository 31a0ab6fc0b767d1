// Rounding to int8 and int4 and back; kernels/quant.py says what the formats are.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "require.h"
#include "tensors.h"

namespace prosparse {
namespace {

constexpr int64_t kTask = 64;  // rows

template <class T>
void widen(const void* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(static_cast<const T*>(from)[i]);
}

void quantize(const Tensor& matrix, const Tensor& out) {
  require(matrix.is_cpu() && matrix.dim() == 2 && (matrix.size(1) <= 1 || matrix.stride(1) == 1),
          "quantize: matrix must be [rows, columns] on the CPU with contiguous rows");
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const Format from = read_format("quantize", "matrix", matrix);
  const Matrix packed = read_matrix("quantize", "out", out, columns);
  require(is_packed(packed.format) && packed.rows == rows, "quantize: out must be ", rows, " rows of int8 or int4");
  const char* data = static_cast<const char*>(matrix.const_data_ptr());
  const int64_t stride = matrix.stride(0) * static_cast<int64_t>(matrix.element_size());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const auto round_row = row_kernels().quantize[packed.format];
  parallel_tasks((rows + kTask - 1) / kTask, [&](int64_t task, Seat) {
    std::vector<float> row(round_up(columns, kBlockColumns));
    for (int64_t i = task * kTask; i < std::min(rows, (task + 1) * kTask); ++i) {
      const void* source = data + i * stride;
      if (from == kFp32)
        std::memcpy(row.data(), source, columns * sizeof(float));
      else if (from == kFp16)
        widen<torch::headeronly::Half>(source, columns, row.data());
      else
        widen<torch::headeronly::BFloat16>(source, columns, row.data());
      round_row(row.data(), columns, to + i * packed.row_bytes);
    }
  });
}

void dequantize(const Tensor& codes, const Tensor& out) {
  require(out.is_cpu() && out.dim() == 2 && out.is_contiguous(), "dequantize: out must be contiguous on the CPU");
  const int64_t rows = out.size(0), columns = out.size(1);
  const Matrix packed = read_matrix("dequantize", "codes", codes, columns);
  require(is_packed(packed.format) && packed.rows == rows, "dequantize: codes must be ", rows, " rows of int8 or int4");
  const Format to = read_format("dequantize", "out", out);
  require(to != kFp16, "dequantize: out must be float32 or bfloat16");
  const RowKernels& kernels = row_kernels();
  void* data = out.mutable_data_ptr();
  // On PyTorch's threads: what follows is one of its GEMMs, and so is what went before.
  torch::stable::parallel_for(0, rows, kTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (to == kFp32)
        kernels.dequantize_fp32[packed.format](packed.row(i), columns, static_cast<float*>(data) + i * columns);
      else
        kernels.dequantize_bf16[packed.format](packed.row(i), columns, static_cast<uint16_t*>(data) + i * columns);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) {
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("dequantize", TORCH_BOX(&dequantize));
}

}  // namespace prosparse
