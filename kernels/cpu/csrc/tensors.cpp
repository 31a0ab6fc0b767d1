#include "tensors.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>

#include "isa.h"
#include "require.h"
#include "workspace.h"

namespace prosparse {
namespace {

using torch::headeronly::ScalarType;

void require_cpu(const char* op, const char* name, const Tensor& tensor) {
  require(tensor.is_cpu(), op, ": ", name, " must be on the CPU, like x; move it with .cpu()");
}

template <class T>
void convert(const T* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

template <class T>
void round_to(const float* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

// As torch's own BFloat16 does, in a form that becomes vectors: halves to even, every NaN to one.
void round_to(const float* from, int64_t n, torch::headeronly::BFloat16* to) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, from[i]);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i].x = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

}  // namespace

Format read_format(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return kFp32;
    case ScalarType::Half:
      return kFp16;
    case ScalarType::BFloat16:
      return kBf16;
    default:
      fail(op, ": ", name, " must be float32, float16 or bfloat16, got dtype code ",
           static_cast<int>(tensor.scalar_type()));
  }
}

Matrix read_matrix(const char* op, const char* name, const Tensor& tensor, int64_t columns) {
  require_cpu(op, name, tensor);
  require(tensor.dim() == 2, op, ": ", name, " must be [rows, columns], got ", tensor.dim(), " dimensions");
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Char || type == ScalarType::Byte) {
    const Format format = type == ScalarType::Char ? kInt8 : kInt4;
    require(tensor.size(1) == packed_bytes(format, columns), op, ": rows of ", name, " have ", tensor.size(1),
            " bytes, but ", columns, " columns of ", format == kInt8 ? "int8" : "int4", " make ",
            packed_bytes(format, columns));
    require(tensor.stride(1) == 1, op, ": rows of ", name, " must be contiguous, got stride ", tensor.stride(1));
    return {static_cast<const char*>(tensor.const_data_ptr()), tensor.size(0), columns, tensor.size(1),
            tensor.stride(0), format};
  }
  require(tensor.size(1) == columns, op, ": ", name, " has ", tensor.size(1), " columns but x has ", columns);
  require(columns <= 1 || tensor.stride(1) == 1, op, ": rows of ", name, " must be contiguous, got stride ",
          tensor.stride(1), "; call .contiguous()");
  const Format format = read_format(op, name, tensor);
  const int64_t item = static_cast<int64_t>(tensor.element_size());
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.size(0), columns, columns * item,
          tensor.stride(0) * item, format};
}

Input read_input(const char* op, const Tensor& x) {
  require_cpu(op, "x", x);
  require(x.dim() == 2, op, ": x must be [tokens, columns], got ", x.dim(), " dimensions");
  require(1 <= x.size(0) && x.size(0) <= kMaxTokens, op, ": x has ", x.size(0), " tokens, this op takes 1 to ",
          kMaxTokens);
  require(x.is_contiguous(), op, ": x must be contiguous; call .contiguous()");
  const int64_t tokens = x.size(0), columns = x.size(1), stride = round_up(columns, kBlockColumns);
  const Format format = read_format(op, "x", x);
  float* data = workspace().x.at_least(tokens * stride);
  const void* from = x.const_data_ptr();
  for (int64_t t = 0; t < tokens; ++t) {
    float* to = data + t * stride;
    read_row(from, columns, format, t * columns, to);
    std::memset(to + columns, 0, (stride - columns) * sizeof(float));
  }
  return {data,   tokens, columns, stride, format, reinterpret_cast<const char*>(data),
          stride * static_cast<int64_t>(sizeof(float))};
}

void prepare(Input& x, Format format, Buffer<char>& memory) {
  const auto make = row_kernels().prepare[format];
  if (make == nullptr) {
    x.prepared = reinterpret_cast<const char*>(x.data);
    x.prepared_bytes = x.stride * static_cast<int64_t>(sizeof(float));
    return;
  }
  x.prepared_bytes = prepared_bytes(format, x.columns);
  char* data = memory.at_least(x.tokens * x.prepared_bytes);
  for (int64_t t = 0; t < x.tokens; ++t) make(x.data + t * x.stride, x.columns, data + t * x.prepared_bytes);
  x.prepared = data;
}

void prepare(Input& x, Format format) { prepare(x, format, workspace().prepared); }

const int32_t* read_int32(const char* op, const char* name, const Tensor& tensor) {
  require_cpu(op, name, tensor);
  require(tensor.scalar_type() == ScalarType::Int && tensor.dim() == 1 && tensor.is_contiguous(), op, ": ", name,
          " must be a contiguous vector of int32");
  return static_cast<const int32_t*>(tensor.const_data_ptr());
}

const float* read_float_matrix(const char* op, const char* name, const Tensor& tensor, int64_t rows, int64_t columns) {
  require_cpu(op, name, tensor);
  require(tensor.scalar_type() == ScalarType::Float && tensor.dim() == 2 && tensor.is_contiguous(), op, ": ", name,
          " must be a contiguous matrix of float32");
  require(tensor.size(0) == rows && tensor.size(1) == columns, op, ": ", name, " must be [", rows, ", ", columns,
          "], got [", tensor.size(0), ", ", tensor.size(1), "]");
  return static_cast<const float*>(tensor.const_data_ptr());
}

int64_t* read_tally(const char* op, const Tensor& tally) {
  require_cpu(op, "tally", tally);
  require(tally.scalar_type() == ScalarType::Long && tally.numel() == 4, op, ": tally must be four int64, got ",
          tally.numel(), " elements of dtype code ", static_cast<int>(tally.scalar_type()),
          "; make it with kernels.tally.new_tally");
  require(tally.is_contiguous(), op, ": tally must be contiguous, got stride ", tally.stride(tally.dim() - 1));
  return static_cast<int64_t*>(tally.mutable_data_ptr());
}

void read_row(const void* from, int64_t n, Format format, int64_t offset, float* values) {
  if (format == kFp32)
    convert(static_cast<const float*>(from) + offset, n, values);
  else if (format == kFp16)
    convert(static_cast<const torch::headeronly::Half*>(from) + offset, n, values);
  else
    convert(static_cast<const torch::headeronly::BFloat16*>(from) + offset, n, values);
}

void write_row(const float* values, int64_t n, Format format, void* out, int64_t offset) {
  if (format == kFp32)
    std::memcpy(static_cast<float*>(out) + offset, values, n * sizeof(float));
  else if (format == kFp16)
    round_to(values, n, static_cast<torch::headeronly::Half*>(out) + offset);
  else
    round_to(values, n, static_cast<torch::headeronly::BFloat16*>(out) + offset);
}

}  // namespace prosparse
