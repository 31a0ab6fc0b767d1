// What guesses which neurons are active before their gate is read; kernels/guess.py says what it means.
#pragma once

#include <cstdint>
#include <vector>

#include "course.h"
#include "isa.h"
#include "tensors.h"

namespace prosparse {

struct Guess {
  enum Code : int64_t { kSome = 1, kSigns = 2, kFirst = 4, kRelu = 8, kUnNormed = 16, kCodes = 32 };

  int64_t code = 0;
  const float* offset = nullptr;  // [neurons]
  Matrix scanned{};               // [neurons, columns], or the signs of each neuron
  Matrix first{};                 // [columns, hidden], what makes the input of a low rank

  bool has(Code bit) const { return (code & bit) != 0; }
  static size_t tensors(int64_t code) { return code == 0 ? 0 : (code & kFirst) != 0 ? 3 : 2; }
  Upcoming upcoming() const;  // what is read first of it
};

// The tensors of one guess (offset, scanned, first where there is one) for so many neurons of so many columns.
Guess read_guess(const char* op, int64_t code, const Tensor* tensors, int64_t neurons, int64_t hidden);

// The tokens of a step as a guess takes them; prepared in this thread's workspace.
struct Asked {
  const Guess& guess;
  Input z;  // without signs
  const uint64_t* signs;  // [tokens, words]
  int64_t tokens;
};

// x is the normed input and residual what it was made of, both fp32, padded.
Asked ask(const Guess& guess, const Input& x, const Input& residual);

// Lists the neurons of every chunk that the guess names, ascending: ids[chunks.begin(chunk) + k], counts[chunk]. What
// each thread is to read next of the gate (if given) is asked for at once.
void scan_guess(const Asked& asked, const Matrix* gate, int32_t* ids, int64_t* counts);

}  // namespace prosparse
