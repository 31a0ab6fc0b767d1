// Memory that one thread's ops reuse from call to call: a fresh allocation of this size would fault its pages in again
// on every token.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "rows.h"

namespace prosparse {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // At least n elements, uninitialised; what was there before is lost.
  T* at_least(int64_t n) {
    if (n > capacity_) {
      std::free(data_);
      capacity_ = 0;
      data_ = static_cast<T*>(std::aligned_alloc(64, round_up(n * static_cast<int64_t>(sizeof(T)), 64)));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = n;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

struct Workspace {
  Buffer<float> x;         // [tokens, padded columns]
  Buffer<char> prepared;   // [tokens, prepared_bytes]
  Buffer<float> key;       // [head_dim]
  Buffer<float> normed;    // [tokens, padded hidden]
  Buffer<float> heads;     // [tokens, (heads + 2 kv_heads) * head_dim]
  Buffer<float> queries;   // [tokens, heads * head_dim]
  Buffer<float> attended;  // [tokens, padded heads * head_dim]
  Buffer<float> value;     // [neurons, tokens]
  Buffer<float> product;   // [neurons, tokens]
  Buffer<float> partial;   // [chunks, tokens, padded columns]
  Buffer<int32_t> listed;  // [neurons]
  Buffer<int32_t> live;    // [neurons]
  Buffer<int32_t> named;   // [neurons]
  Buffer<float> residual;        // [tokens, padded hidden]
  Buffer<float> guess;           // [tokens, padded rank]
  Buffer<char> guess_prepared;   // [tokens, prepared_bytes]
  Buffer<uint64_t> signs;        // [tokens, words]
};

inline Workspace& workspace() {
  static thread_local Workspace memory;
  return memory;
}

}  // namespace prosparse
