// Rotary embedding of one sequence's new tokens, and their keys and values into the cache.
#pragma once

#include <cstdint>

#include "cached.h"
#include "workspace.h"

namespace prosparse {

inline void rotate(const float* head, const float* cos, const float* sin, int64_t half, float* to) {
  const float *a = head, *b = head + half;
  for (int64_t i = 0; i < half; ++i) {
    to[i] = a[i] * cos[i] - b[i] * sin[i];
    to[half + i] = b[i] * cos[i] + a[i] * sin[i];
  }
}

// x: [rows, heads + 2 kv_heads, head_dim]; cos and sin: [rows, head_dim / 2]; q: [rows, heads, head_dim].
inline void rotate_and_store(const float* x, int64_t rows, int64_t heads, const float* cos, const float* sin,
                             const Cached& k, const Cached& v, int64_t start, float* q) {
  const int64_t head_dim = k.head_dim, half = head_dim / 2;
  float* key = workspace().key.at_least(head_dim);
  for (int64_t r = 0; r < rows; ++r, cos += half, sin += half) {
    for (int64_t h = 0; h < heads; ++h, x += head_dim, q += head_dim) rotate(x, cos, sin, half, q);
    for (int64_t h = 0; h < k.heads; ++h, x += head_dim) {
      rotate(x, cos, sin, half, key);
      write_row(key, head_dim, k.format, k.data, k.offset(h, start + r));
    }
    for (int64_t h = 0; h < v.heads; ++h, x += head_dim)
      write_row(x, head_dim, v.format, v.data, v.offset(h, start + r));
  }
}

}  // namespace prosparse
