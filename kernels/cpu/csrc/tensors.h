// Tensors as the kernels see them: checked once, then plain pointers and sizes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "rows.h"
#include "workspace.h"

namespace prosparse {

using torch::stable::Tensor;

constexpr int64_t kMaxTokens = 16;

// A weight whose rows are contiguous; the next one may start further away.
struct Matrix {
  const char* data;
  int64_t rows, columns, bytes, row_bytes;  // of a row, and from one row to the next
  Format format;

  const void* row(int64_t i) const { return data + i * row_bytes; }
};

// The tokens of a step, converted to fp32, padded with zeros to a multiple of kBlockColumns, and prepared for the
// weights that they meet.
struct Input {
  const float* data;
  int64_t tokens, columns, stride;
  Format format;  // of the tensor, and of the result
  const char* prepared;
  int64_t prepared_bytes;  // from one token to the next

  const void* token(int64_t t) const { return prepared + t * prepared_bytes; }
};

Format read_format(const char* op, const char* name, const Tensor& tensor);
Matrix read_matrix(const char* op, const char* name, const Tensor& tensor, int64_t columns);

// Converts into this thread's workspace: valid until the next op of the same thread.
Input read_input(const char* op, const Tensor& x);

// For weights of this format, in `memory` or in this thread's own for an FFN or linear; valid as long.
void prepare(Input& x, Format format);
void prepare(Input& x, Format format, Buffer<char>& memory);

// The pointer of a contiguous tensor of this type and shape; dims < 0 match any size.
const int32_t* read_int32(const char* op, const char* name, const Tensor& tensor);
const float* read_float_matrix(const char* op, const char* name, const Tensor& tensor, int64_t rows, int64_t columns);
int64_t* read_tally(const char* op, const Tensor& tally);

// n elements from `offset` on of a tensor of this format, as floats, and back.
void read_row(const void* from, int64_t n, Format format, int64_t offset, float* values);
void write_row(const float* values, int64_t n, Format format, void* out, int64_t offset);

}  // namespace prosparse
