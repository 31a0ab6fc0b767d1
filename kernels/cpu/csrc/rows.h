// The arithmetic of one instruction set: dot products and scaled sums over rows of a weight matrix.
#pragma once

#include <cstdint>

namespace prosparse {

enum Format : int { kFp32, kFp16, kBf16, kFormats };  // position in the tables below

struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

constexpr int64_t kRows = 4;      // rows in flight: what hides DRAM latency (1 row 22, 4 rows 26 GB/s on 3 KiB rows)
constexpr int64_t kPadding = 16;  // floats: x and y are padded with this to a whole vector of any instruction set

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Every (row, token) pair has one vector accumulator that walks the columns in order, so the bits of a result depend
// on the instruction set alone: not on the rows or the tokens computed beside it.
//
// `rows` and `next` hold kRows pointers (repeat one where there are fewer); `next` is read soon after and is
// prefetched. `x` and `y` are padded to kPadding floats, x with zeros.
struct RowKernels {
  const char* name;
  // out[r * tokens + t] = rows[r] . x[t * x_stride ...]
  void (*dot[kFormats])(const void* const* rows, const void* const* next, const float* x, int64_t x_stride,
                        int64_t tokens, int64_t columns, float* out);
  // out[i] = rows[i] . xs[i]
  void (*dot_pairs[kFormats])(const void* const* rows, const void* const* next, const float* const* xs, int64_t columns,
                              float* out);
  // y += factors[0] * rows[0], then += factors[1] * rows[1], ... for n_rows of 1 to kRows, each a rounded FMA
  void (*axpy[kFormats])(const void* const* rows, const void* const* next, const float* factors, int64_t n_rows,
                         int64_t columns, float* y);
};

extern const RowKernels kGenericKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2Kernels;
extern const RowKernels kAvx512Kernels;
#endif

}  // namespace prosparse
