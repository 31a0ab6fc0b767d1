// RMSNorm of one token.
#pragma once

#include <cmath>
#include <cstdint>

namespace prosparse {

inline void normalize(const float* x, int64_t n, const float* weight, float eps, float* out) {
  constexpr int64_t kPartials = 16;  // sums in flight, added in a fixed order
  float sums[kPartials] = {};
  int64_t i = 0;
  for (; i + kPartials <= n; i += kPartials)
    for (int64_t j = 0; j < kPartials; ++j) sums[j] += x[i + j] * x[i + j];
  for (; i < n; ++i) sums[i % kPartials] += x[i] * x[i];
  float sum = 0;
  for (const float part : sums) sum += part;
  const float factor = 1 / std::sqrt(sum / static_cast<float>(n) + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

}  // namespace prosparse
