#include "guess.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <bit>
#include <cstring>
#include <tuple>

#include "ffn.h"
#include "linear.h"
#include "require.h"
#include "workspace.h"

namespace prosparse {
namespace {

constexpr int64_t kWord = 64;  // signs in a word

Matrix read_signs(const char* op, const Tensor& signs, int64_t columns) {
  const int64_t words = (columns + kWord - 1) / kWord;
  require(signs.is_cpu() && signs.dim() == 2 && signs.is_contiguous() &&
              signs.scalar_type() == torch::headeronly::ScalarType::Long && signs.size(1) == words,
          op, ": signs must be contiguous [neurons, ", words, "] int64 for ", columns, " columns");
  const int64_t bytes = words * static_cast<int64_t>(sizeof(uint64_t));
  return {static_cast<const char*>(signs.const_data_ptr()), signs.size(0), columns, bytes, bytes, kFp32};
}

const uint64_t* sign_words(const Input& x) {
  const int64_t words = (x.columns + kWord - 1) / kWord;
  uint64_t* to = workspace().signs.at_least(x.tokens * words);
  for (int64_t t = 0; t < x.tokens; ++t)
    for (int64_t w = 0; w < words; ++w) {
      uint64_t word = 0;
      for (int64_t i = 0; i < std::min(kWord, x.columns - w * kWord); ++i)
        word |= static_cast<uint64_t>(std::bit_cast<uint32_t>(x.data[t * x.stride + w * kWord + i]) >> 31) << i;
      to[t * words + w] = word;
    }
  return to;
}

void score_rows(const RowKernels& kernels, const Asked& asked, const void* const* rows, const Course::Group& next,
                float* scores) {
  const Matrix& scanned = asked.guess.scanned;
  if (!asked.guess.has(Guess::kSigns)) {
    kernels.dot[scanned.format](rows, next.rows, asked.z.prepared, asked.z.prepared_bytes, asked.tokens,
                                asked.z.columns, scores);
    return;
  }
  const int64_t words = scanned.bytes / static_cast<int64_t>(sizeof(uint64_t));
  for (int64_t t = 0; t < asked.tokens; ++t) {
    int64_t differing[kRows];
    kernels.count_differing(rows, next.rows, asked.signs + t * words, words, differing);
    for (int64_t i = 0; i < kRows; ++i)
      scores[i * asked.tokens + t] = static_cast<float>(scanned.columns - 2 * differing[i]);
  }
}

// Lists the neurons [begin, end) that are named: ids[k]. Their rows of the gate (if given) are asked for at once.
// `course` starts with the rows that are scanned.
int64_t scan_rows(const RowKernels& kernels, const Asked& asked, int64_t begin, int64_t end, const Course& course,
                  const Matrix* gate, int32_t* ids) {
  const Matrix& scanned = asked.guess.scanned;
  const float* offset = asked.guess.offset;
  int64_t n = 0;
  for (int64_t first = begin; first < end; first += kRows) {
    const void* rows[kRows];
    for (int64_t i = 0; i < kRows; ++i) rows[i] = scanned.row(std::min(first + i, end - 1));
    float scores[kRows * kMaxTokens];
    score_rows(kernels, asked, rows, course.ahead(first - begin), scores);
    for (int64_t i = 0; i < std::min(kRows, end - first); ++i) {
      bool named = false;
      for (int64_t t = 0; t < asked.tokens; ++t) named |= !(scores[i * asked.tokens + t] + offset[first + i] < 0);
      if (!named) continue;
      if (gate != nullptr && are_few(n, first + i - begin)) request(*gate, first + i);
      ids[n++] = static_cast<int32_t>(first + i);
    }
  }
  return n;
}

// The list of all neurons that are named, in ascending order.
std::tuple<Tensor, Tensor> list_named(const Tensor& x, const Asked& asked) {
  using torch::headeronly::ScalarType;
  const int64_t neurons = asked.guess.scanned.rows;
  Tensor index = torch::stable::new_empty(x, {neurons}, ScalarType::Int);
  Tensor count = torch::stable::new_empty(x, {1}, ScalarType::Int);
  const Chunks chunks(neurons);
  int32_t* ids = workspace().named.at_least(neurons);
  int64_t counts[Chunks::kMost];
  scan_guess(asked, nullptr, ids, counts);
  int32_t* to = static_cast<int32_t*>(index.mutable_data_ptr());
  int32_t slot = 0;
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    std::memcpy(to + slot, ids + chunks.begin(chunk), counts[chunk] * sizeof(int32_t));
    slot += static_cast<int32_t>(counts[chunk]);
  }
  *static_cast<int32_t*>(count.mutable_data_ptr()) = slot;
  return {index, count};
}

std::tuple<Tensor, Tensor> predict_select(const Tensor& x, const Tensor& weight, const Tensor& offset) {
  const Input in = read_input("predict_select", x);
  const Tensor tensors[] = {offset, weight};
  const Guess guess = read_guess("predict_select", Guess::kSome, tensors, weight.size(0), in.columns);
  return list_named(x, ask(guess, in, in));
}

std::tuple<Tensor, Tensor> sign_select(const Tensor& x, const Tensor& signs, const Tensor& offset) {
  const Input in = read_input("sign_select", x);
  const Tensor tensors[] = {offset, signs};
  const Guess guess = read_guess("sign_select", Guess::kSome | Guess::kSigns, tensors, signs.size(0), in.columns);
  return list_named(x, ask(guess, in, in));
}

}  // namespace

Upcoming Guess::upcoming() const {
  if (has(kFirst)) return Pieces::upcoming(first);
  const Chunks chunks(scanned.rows);
  return {&scanned, chunks.begin(chunks.count - 1)};
}

Guess read_guess(const char* op, int64_t code, const Tensor* tensors, int64_t neurons, int64_t hidden) {
  require(0 <= code && code < Guess::kCodes, op, ": guess code ", code, " is not known");
  Guess guess;
  guess.code = code;
  int64_t columns = hidden;
  if (guess.has(Guess::kFirst)) {
    guess.first = read_matrix(op, "first", tensors[2], hidden);
    columns = guess.first.rows;
  }
  guess.scanned = guess.has(Guess::kSigns) ? read_signs(op, tensors[1], hidden) : read_matrix(op, "weight", tensors[1], columns);
  require(guess.scanned.rows == neurons, op, ": the guess is of ", guess.scanned.rows, " neurons, expected ", neurons);
  require(tensors[0].is_cpu() && tensors[0].is_contiguous() && tensors[0].numel() == neurons &&
              read_format(op, "offset", tensors[0]) == kFp32,
          op, ": offset must hold ", neurons, " contiguous float32 numbers on the CPU");
  guess.offset = static_cast<const float*>(tensors[0].const_data_ptr());
  return guess;
}

Asked ask(const Guess& guess, const Input& x, const Input& residual) {
  if (guess.has(Guess::kSigns)) return {guess, x, sign_words(x), x.tokens};
  Input from = guess.has(Guess::kUnNormed) ? residual : x;
  if (guess.has(Guess::kFirst)) {
    const int64_t columns = guess.first.rows, stride = round_up(columns, kBlockColumns);
    float* z = workspace().guess.at_least(x.tokens * stride);
    for (int64_t t = 0; t < x.tokens; ++t) std::memset(z + t * stride + columns, 0, (stride - columns) * sizeof(float));
    prepare(from, guess.first.format, workspace().guess_prepared);
    const bool relu = guess.has(Guess::kRelu);
    const Chunks chunks(guess.scanned.rows);
    multiply(
        from, guess.first,
        [&](int64_t t, int64_t begin, int64_t n, const float* y) {
          for (int64_t i = 0; i < n; ++i) z[t * stride + begin + i] = relu && y[i] <= 0 ? 0 : y[i];
        },
        {&guess.scanned, chunks.begin(chunks.count - 1)});
    from = {z, x.tokens, columns, stride, kFp32, reinterpret_cast<const char*>(z),
            stride * static_cast<int64_t>(sizeof(float))};
  }
  prepare(from, guess.scanned.format, workspace().guess_prepared);
  return {guess, from, nullptr, x.tokens};
}

void scan_guess(const Asked& asked, const Matrix* gate, int32_t* ids, int64_t* counts) {
  const Matrix& scanned = asked.guess.scanned;
  const RowKernels& kernels = row_kernels();
  const Chunks chunks(scanned.rows);
  parallel_tasks(chunks.count, [&](int64_t chunk, Seat seat) {
    const int64_t begin = chunks.begin(chunk), end = chunks.end(chunk);
    Course course;
    course.add(scanned, begin, end - begin);
    course.add(scanned, chunks.begin(seat.then), chunks.end(seat.then) - chunks.begin(seat.then));
    const bool is_next = gate != nullptr && chunk == (seat.front ? 0 : chunks.count - 1);
    counts[chunk] = scan_rows(kernels, asked, begin, end, course, is_next ? gate : nullptr, ids + begin);
  });
}

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) {
  m.impl("predict_select", TORCH_BOX(&predict_select));
  m.impl("sign_select", TORCH_BOX(&sign_select));
}

}  // namespace prosparse
