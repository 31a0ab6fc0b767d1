// Attention of one sequence's new tokens over its cache.
#pragma once

#include <cstdint>

#include "cached.h"
#include "course.h"

namespace prosparse {

// q: rotated queries [rows, heads, head_dim]; keys and values: start + rows positions; window 0 sees all; out: [rows,
// heads * head_dim], out_stride floats from one row to the next; upcoming: what is read after it.
void attend(const float* q, int64_t rows, int64_t heads, const Cached& keys, const Cached& values, int64_t start,
            int64_t window, int64_t out_stride, float* out, const Upcoming& upcoming = {});

}  // namespace prosparse
