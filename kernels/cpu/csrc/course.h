// The order in which a thread reads rows from memory: what to prefetch while a row is used.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pool.h"
#include "tensors.h"

namespace prosparse {

class Course {
 public:
  // Rows [begin, begin + n) of a matrix, or those of n ids, follow what is there.
  void add(const Matrix& matrix, int64_t begin, int64_t n) { push({&matrix, begin, n, nullptr}); }
  void add(const Matrix& matrix, const int32_t* ids, int64_t n) { push({&matrix, 0, n, ids}); }

  // kRows rows that should be on their way while those from `position` on are used: far enough ahead that every row in
  // flight is prefetched by about kAheadBytes.
  struct Group {
    const void* rows[kRows];
  };
  Group ahead(int64_t position) const {
    Group group;
    position += distance();
    for (int64_t i = 0; i < kRows; ++i) group.rows[i] = row(position + i);
    return group;
  }
  int64_t distance() const {
    const int64_t bytes = std::max<int64_t>(segments_[0].matrix->bytes, 1);  // a row may be empty
    return kRows * std::max<int64_t>(1, (kAheadBytes + bytes - 1) / bytes);
  }

 private:
  struct Segment {
    const Matrix* matrix;
    int64_t begin, n;
    const int32_t* ids;
  };

  void push(const Segment& segment) {
    if (segment.n > 0) segments_[count_++] = segment;
  }

  // Beyond the end it is the last row.
  const void* row(int64_t position) const {
    int64_t s = 0;
    for (; s + 1 < count_ && position >= segments_[s].n; ++s) position -= segments_[s].n;
    const Segment& at = segments_[s];
    position = std::min(position, at.n - 1);
    return at.matrix->row(at.ids != nullptr ? at.ids[position] : at.begin + position);
  }

  Segment segments_[4];
  int64_t count_ = 0;
};

// What a thread reads after the region that it is in: it asks for the first of it before it waits for the others, so that
// memory is not idle meanwhile.
struct Upcoming {
  const Matrix* matrix = nullptr;
  int64_t back = 0;  // the row where workers begin; the caller begins at 0

  void request(int64_t task, Seat seat) const;
};

// Asks for a whole row.
inline void request(const Matrix& matrix, int64_t row) {
  const char* data = static_cast<const char*>(matrix.row(row));
  for (int64_t offset = 0; offset < matrix.bytes; offset += 64) __builtin_prefetch(data + offset, 0, 2);
  __builtin_prefetch(data + matrix.bytes - 1, 0, 2);
}

inline void Upcoming::request(int64_t task, Seat seat) const {
  constexpr int64_t kBytes = 48 << 10;
  if (matrix == nullptr || seat.then != task) return;
  const int64_t begin = seat.front ? 0 : back, rows = kBytes / std::max<int64_t>(matrix->bytes, 1);
  const int64_t end = std::min(matrix->rows, begin + rows);
  for (int64_t row = begin; row < end; ++row) prosparse::request(*matrix, row);
}

}  // namespace prosparse
