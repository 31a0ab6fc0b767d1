// What single tokens need of single rows, gathered until kRows of them can be computed at once.
#pragma once

#include "ffn.h"

namespace prosparse {

// Products that single tokens need of single rows, computed kRows at a time.
class Pairs {
 public:
  explicit Pairs(const Ffn& ffn) : ffn_(ffn) {}

  void push(const void* row, const void* const* next, int64_t t, float value, float* product) {
    rows_[n_] = row;
    xs_[n_] = ffn_.x.token(t);
    values_[n_] = value;
    products_[n_] = product;
    if (++n_ == kRows) flush(next);
  }

  void finish() { flush(rows_); }

 private:
  void flush(const void* const* next) {
    if (n_ == 0) return;
    for (int64_t i = n_; i < kRows; ++i) {
      rows_[i] = rows_[0];
      xs_[i] = xs_[0];
    }
    float u[kRows];
    ffn_.kernels.dot_pairs[ffn_.up.format](rows_, next, xs_, ffn_.x.columns, u);
    for (int64_t i = 0; i < n_; ++i) *products_[i] = values_[i] * ffn_.activation.up(u[i]);
    n_ = 0;
  }

  const Ffn& ffn_;
  int64_t n_ = 0;
  const void* rows_[kRows];
  const void* xs_[kRows];
  float values_[kRows];
  float* products_[kRows];
};

// Rows that are to be added to one token's sum, in their order.
class Sums {
 public:
  void push(const Ffn& ffn, const void* row, float factor, const void* const* next, float* y) {
    rows_[n_] = row;
    factors_[n_] = factor;
    if (++n_ == kRows) flush(ffn, next, y);
  }

  void finish(const Ffn& ffn, float* y) {
    if (n_ == 0) return;
    for (int64_t i = n_; i < kRows; ++i) rows_[i] = rows_[0];
    flush(ffn, rows_, y);
  }

 private:
  void flush(const Ffn& ffn, const void* const* next, float* y) {
    ffn.kernels.axpy[ffn.down.format](rows_, next, factors_, n_, ffn.x.columns, y);
    n_ = 0;
  }

  int64_t n_ = 0;
  const void* rows_[kRows];
  float factors_[kRows];
};

}  // namespace prosparse
