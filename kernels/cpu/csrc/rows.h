// The arithmetic of one instruction set: dot products and scaled sums over rows of a weight matrix.
#pragma once

#include <cstdint>

namespace prosparse {

enum Format : int { kFp32, kFp16, kBf16, kInt8, kInt4, kFormats };  // position in the tables below

struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

constexpr int64_t kRows = 4;      // rows in flight: what hides DRAM latency (1 row 22, 4 rows 26 GB/s on 3 KiB rows)
constexpr int64_t kPadding = 16;  // floats: a whole vector of any instruction set
constexpr int64_t kBlockColumns = 128;   // columns that a kernel of a packed format takes at a time

// Prefetch distance within each of kRows rows, into L2: the first-level cache has too few miss buffers to hide DRAM.
// bf16, 3 KiB rows, one Zen 4 core: dense rows 20.6 GB/s against 12.3 with 1 KiB into L1, scattered rows 22 against 17.
constexpr int64_t kAheadBytes = 3072;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Packed rows, as kernels/quant.py defines them.
constexpr bool is_packed(Format format) { return format >= kInt8; }
constexpr int64_t group_of(Format format) { return format == kInt4 ? 32 : 128; }  // columns that share a scale
constexpr int64_t code_bytes(Format format, int64_t columns) {
  return round_up(columns, group_of(format)) / (format == kInt4 ? 2 : 1);
}
constexpr int64_t packed_bytes(Format format, int64_t columns) {
  return round_up(code_bytes(format, columns) + 2 * (round_up(columns, group_of(format)) / group_of(format)), 16);
}

// A packed row meets x in 16-bit fixed point, one scale for the columns of a group: products are then whole numbers, 32
// to an instruction, and x is off by at most 2^-16 of the largest of its group. A block of kBlockColumns columns:
struct Int8Block {
  int16_t x[kBlockColumns];
  float scale[16];  // of every lane
};
struct Int4Block {
  int16_t x[4][32];   // in the order in which codes come out of the words, see packed.inc
  int32_t offset[16];  // -8 times the sum of x in every lane: a code is 8 more than what it means
  float scale[16];     // of every lane
};

constexpr int64_t prepared_bytes(Format format, int64_t columns) {
  const int64_t blocks = round_up(columns, kBlockColumns) / kBlockColumns;
  if (format == kInt8) return blocks * static_cast<int64_t>(sizeof(Int8Block));
  if (format == kInt4) return blocks * static_cast<int64_t>(sizeof(Int4Block));
  return round_up(columns, kBlockColumns) * static_cast<int64_t>(sizeof(float));
}

// Every (row, token) pair has one vector accumulator that walks the columns in order, so the bits of a result depend
// on the instruction set alone: not on the rows or the tokens computed beside it.
//
// `rows` and `next` hold kRows pointers (repeat one where there are fewer); `next` is read soon after and is
// prefetched. x is what `prepare` makes of it for the format of the rows; without one it is floats, zeros up to a
// multiple of kPadding. y has room for a multiple of kPadding floats, of kBlockColumns for the packed formats.
struct RowKernels {
  const char* name;
  // out[r * tokens + t] = rows[r] . x[t]; x_bytes from one token to the next
  void (*dot[kFormats])(const void* const* rows, const void* const* next, const void* x, int64_t x_bytes,
                        int64_t tokens, int64_t columns, float* out);
  // out[i] = rows[i] . xs[i]
  void (*dot_pairs[kFormats])(const void* const* rows, const void* const* next, const void* const* xs, int64_t columns,
                              float* out);
  // y += factors[0] * rows[0], then += factors[1] * rows[1], ... for n_rows of 1 to kRows, each a rounded FMA. For int4
  // y is in the order of `restore`.
  void (*axpy[kFormats])(const void* const* rows, const void* const* next, const float* factors, int64_t n_rows,
                         int64_t columns, float* y);
  // out[r] = bits of rows[r] that differ from x, over so many words
  void (*count_differing)(const void* const* rows, const void* const* next, const uint64_t* x, int64_t words,
                          int64_t* out);
  // x: floats, zeros up to a multiple of kBlockColumns
  void (*prepare[kFormats])(const float* x, int64_t columns, void* out);
  // One packed row from floats (zeros up to a multiple of kBlockColumns), and back to fp32 or bf16 (columns of them)
  void (*quantize[kFormats])(const float* row, int64_t columns, void* out);
  void (*dequantize_fp32[kFormats])(const void* row, int64_t columns, float* out);
  void (*dequantize_bf16[kFormats])(const void* row, int64_t columns, uint16_t* out);
};

// One block of int4's y into the order of columns.
inline void restore(const float* y, float* out) {
  for (int64_t i = 0; i < 8; ++i)
    for (int64_t group = 0; group < 4; ++group)
      __builtin_memcpy(out + group * 32 + i * 4, y + i * 16 + group * 4, 4 * sizeof(float));
}

extern const RowKernels kGenericKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2Kernels;
extern const RowKernels kAvx512Kernels;
extern const RowKernels kAvx512VnniKernels;
#elif defined(__aarch64__)
extern const RowKernels kNeonKernels;
#endif

}  // namespace prosparse
