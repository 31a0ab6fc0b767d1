// Attention of a few new tokens over the cache; kernels/attend.py says what it means.
//
// Positions are cut into blocks at fixed borders. A block of one key head is computed by one thread, against all query
// heads that share it, and keeps its own maximum, sum and weighted values; blocks are joined in order. So the result
// does not depend on the threads, nor on the rows computed beside it.
#include "attend.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"
#include "parallel.h"
#include "workspace.h"

namespace prosparse {
namespace {

constexpr int64_t kBlock = 256;  // positions: keys and values of a block, 64 bf16 numbers each, are 64 KiB of L2

// e^x for x <= 0 to 2 units in the last place, NaN for NaN (Cephes' polynomial); std::exp would not vectorise.
inline float exp_below_zero(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits
  x = x < -87.0f ? -87.0f : x;           // below, the result is less than 2^-125 of the largest weight
  const float shifted = x * 1.44269504f + kMagic;
  const float n = shifted - kMagic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r * r + r) + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // 2^n: the low byte of `shifted` holds n
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

struct Attention {
  const RowKernels& kernels;
  const Cached keys, values;
  const float* q;  // [rows, heads, stride], scaled, padded with zeros
  int64_t rows, heads, group, stride, start, window, blocks, first_block;
  float* largest;  // [rows, heads, blocks]
  float* total;    // [rows, heads, blocks]
  float* sums;     // [rows, heads, blocks, stride]

  int64_t begin(int64_t row, int64_t block) const {
    const int64_t seen = window > 0 ? std::max<int64_t>(0, start + row + 1 - window) : 0;
    return std::max(seen, block * kBlock);
  }
  int64_t end(int64_t row, int64_t block) const { return std::min(start + row + 1, (block + 1) * kBlock); }
  int64_t at(int64_t row, int64_t head, int64_t block) const {
    return (row * heads + head) * blocks + block - first_block;
  }

  // One block of one key head for one new token: all query heads of its group.
  void add(int64_t row, int64_t kv_head, int64_t block, float* scores) const {
    const int64_t from = begin(row, block), n = end(row, block) - from, first = kv_head * group;
    if (n <= 0) {
      for (int64_t g = 0; g < group; ++g) largest[at(row, first + g, block)] = -INFINITY;
      return;
    }
    const float* query = q + (row * heads + first) * stride;
    for (int64_t p = 0; p < n; p += kRows) {
      const void *k[kRows], *next[kRows];
      for (int64_t i = 0; i < kRows; ++i) {
        k[i] = keys.row(kv_head, from + std::min(p + i, n - 1));
        next[i] = keys.row(kv_head, from + std::min(p + kRows + i, n - 1));
      }
      for (int64_t g = 0; g < group; g += kMaxTokens) {
        const int64_t some = std::min(kMaxTokens, group - g);
        float s[kRows * kMaxTokens];
        kernels.dot[keys.format](k, next, query + g * stride, stride * static_cast<int64_t>(sizeof(float)), some,
                                 keys.head_dim, s);
        for (int64_t i = 0; i < std::min(kRows, n - p); ++i)
          for (int64_t j = 0; j < some; ++j) scores[(g + j) * kBlock + p + i] = s[i * some + j];
      }
    }
    for (int64_t g = 0; g < group; ++g) {
      float* s = scores + g * kBlock;
      float most = s[0];
      for (int64_t p = 1; p < n; ++p) most = s[p] > most ? s[p] : most;
      for (int64_t p = 0; p < n; ++p) s[p] = exp_below_zero(s[p] - most);
      float sum = 0;
      for (int64_t p = 0; p < n; ++p) sum += s[p];
      largest[at(row, first + g, block)] = most;
      total[at(row, first + g, block)] = sum;
      std::memset(sums + at(row, first + g, block) * stride, 0, stride * sizeof(float));
    }
    for (int64_t p = 0; p < n; p += kRows) {
      const void *v[kRows], *next[kRows];
      for (int64_t i = 0; i < kRows; ++i) {
        v[i] = values.row(kv_head, from + std::min(p + i, n - 1));
        next[i] = values.row(kv_head, from + std::min(p + kRows + i, n - 1));
      }
      for (int64_t g = 0; g < group; ++g)
        kernels.axpy[values.format](v, next, scores + g * kBlock + p, std::min(kRows, n - p), values.head_dim,
                                    sums + at(row, first + g, block) * stride);
    }
  }

  // The blocks of one head of one token, joined in order.
  void join(int64_t row, int64_t head, float* out) const {
    const int64_t from = at(row, head, first_block);
    float most = -INFINITY;
    for (int64_t b = 0; b < blocks; ++b) most = largest[from + b] > most ? largest[from + b] : most;
    float sum = 0;
    std::memset(out, 0, values.head_dim * sizeof(float));
    for (int64_t b = 0; b < blocks; ++b) {
      if (largest[from + b] == -INFINITY && most != -INFINITY) continue;  // nothing of this block is seen
      const float share = std::exp(largest[from + b] - most);
      sum += share * total[from + b];
      for (int64_t i = 0; i < values.head_dim; ++i) out[i] += share * sums[(from + b) * stride + i];
    }
    for (int64_t i = 0; i < values.head_dim; ++i) out[i] /= sum;
  }
};

Tensor attend_op(const Tensor& q, const Tensor& keys, const Tensor& values, int64_t start, int64_t window) {
  require(q.is_cpu() && q.dim() == 3 && q.is_contiguous() && read_format("attend", "q", q) == kFp32,
          "attend: q must be a contiguous [rows, heads, head_dim] float32 tensor on the CPU");
  const Cached k = read_cached("attend", "keys", keys), v = read_cached("attend", "values", values);
  const int64_t rows = q.size(0), heads = q.size(1), head_dim = q.size(2);
  require(1 <= rows && rows <= kMaxTokens, "attend: q has ", rows, " rows, this op takes 1 to ", kMaxTokens);
  require(k.heads == v.heads && k.length == v.length && k.format == v.format && k.head_dim == head_dim &&
              v.head_dim == head_dim && k.heads > 0 && heads % k.heads == 0,
          "attend: q, keys and values do not fit together");
  require(start >= 0 && k.length == start + rows && window >= 0, "attend: keys have ", k.length, " positions but ",
          rows, " rows at start ", start, " need ", start + rows);

  Tensor out = torch::stable::new_empty(q, {rows, heads * head_dim});
  attend(static_cast<const float*>(q.const_data_ptr()), rows, heads, k, v, start, window, heads * head_dim,
         static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace

void attend(const float* q, int64_t rows, int64_t heads, const Cached& k, const Cached& v, int64_t start,
            int64_t window, int64_t out_stride, float* out, const Upcoming& upcoming) {
  const int64_t head_dim = k.head_dim, stride = round_up(head_dim, kPadding), group = heads / k.heads;
  const int64_t first_block = (window > 0 ? std::max<int64_t>(0, start + 1 - window) : 0) / kBlock;
  const int64_t blocks = (k.length + kBlock - 1) / kBlock - first_block, parts = rows * heads * blocks;
  Workspace& memory = workspace();
  float* scaled = memory.x.at_least(rows * heads * stride);
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  for (int64_t i = 0; i < rows * heads; ++i) {
    for (int64_t j = 0; j < head_dim; ++j) scaled[i * stride + j] = q[i * head_dim + j] * scale;
    std::memset(scaled + i * stride + head_dim, 0, (stride - head_dim) * sizeof(float));
  }
  float* numbers = memory.value.at_least(2 * parts);
  const Attention attention{row_kernels(), k, v, scaled, rows, heads, group, stride, start, window, blocks,
                            first_block, numbers, numbers + parts, memory.partial.at_least(parts * stride)};
  float* scores = memory.product.at_least(k.heads * blocks * group * kBlock);
  parallel_tasks(k.heads * blocks, [&](int64_t task, Seat seat) {
    for (int64_t row = 0; row < rows; ++row)
      attention.add(row, task % k.heads, first_block + task / k.heads, scores + task * group * kBlock);
    upcoming.request(task, seat);
  });
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < heads; ++head) attention.join(row, head, out + row * out_stride + head * head_dim);
}

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("attend", TORCH_BOX(&attend_op)); }

}  // namespace prosparse
