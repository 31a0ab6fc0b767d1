// Keys or values of one sequence, a view of the cache.
#pragma once

#include "require.h"
#include "tensors.h"

namespace prosparse {

struct Cached {
  char* data;
  int64_t heads, length, head_dim;
  int64_t head_stride, position_stride;  // elements
  int64_t item_bytes;
  Format format;

  int64_t offset(int64_t head, int64_t position) const { return head * head_stride + position * position_stride; }
  const void* row(int64_t head, int64_t position) const { return data + offset(head, position) * item_bytes; }
};

inline Cached read_cached(const char* op, const char* name, const Tensor& tensor) {
  require(tensor.is_cpu() && tensor.dim() == 3, op, ": ", name, " must be [kv_heads, length, head_dim] on the CPU");
  require(tensor.size(2) <= 1 || tensor.stride(2) == 1, op, ": head_dim of ", name, " must be contiguous");
  return {static_cast<char*>(tensor.mutable_data_ptr()),
          tensor.size(0),
          tensor.size(1),
          tensor.size(2),
          tensor.stride(0),
          tensor.stride(1),
          static_cast<int64_t>(tensor.element_size()),
          read_format(op, name, tensor)};
}

}  // namespace prosparse
