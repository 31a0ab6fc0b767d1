// y = weight x for 1 to 16 tokens, handed over in pieces.
#pragma once

#include <algorithm>
#include <cstdint>

#include "course.h"
#include "isa.h"
#include "parallel.h"
#include "tensors.h"

namespace prosparse {

// Rows of a weight in pieces for threads.
struct Pieces {
  static constexpr int64_t kBytes = 96 << 10;  // fewer balance better, more stream longer
  static constexpr int64_t kMostRows = 128;

  int64_t size, count;

  explicit Pieces(const Matrix& weight)
      : size(round_up(std::clamp<int64_t>(kBytes / std::max<int64_t>(weight.bytes, 1), 1, kMostRows), kRows)),
        count((weight.rows + size - 1) / size) {}
  static Upcoming upcoming(const Matrix& weight) {
    const Pieces pieces(weight);
    return {&weight, (pieces.count - 1) * pieces.size};
  }
};

// Calls store(t, begin, n, y) from any thread, once for every piece [begin, begin + n) of the result of token t. x is
// prepared for the weight.
template <class Store>
void multiply(const Input& x, const Matrix& weight, const Store& store, const Upcoming& upcoming = {}) {
  const Pieces pieces(weight);
  const int64_t size = pieces.size;
  const RowKernels& kernels = row_kernels();
  parallel_tasks(pieces.count, [&](int64_t task, Seat seat) {
    const int64_t begin = task * size, n = std::min(size, weight.rows - begin);
    Course course;
    course.add(weight, begin, n);
    course.add(weight, seat.then * size, std::min(size, weight.rows - seat.then * size));
    float y[kMaxTokens][Pieces::kMostRows];
    for (int64_t first = 0; first < n; first += kRows) {
      const void* rows[kRows];
      for (int64_t i = 0; i < kRows; ++i) rows[i] = weight.row(begin + std::min(first + i, n - 1));
      float sums[kRows * kMaxTokens];
      kernels.dot[weight.format](rows, course.ahead(first).rows, x.prepared, x.prepared_bytes, x.tokens, x.columns, sums);
      for (int64_t i = 0; i < std::min(kRows, n - first); ++i)
        for (int64_t t = 0; t < x.tokens; ++t) y[t][first + i] = sums[i * x.tokens + t];
    }
    for (int64_t t = 0; t < x.tokens; ++t) store(t, begin, n, y[t]);
    upcoming.request(task, seat);
  });
}

}  // namespace prosparse
