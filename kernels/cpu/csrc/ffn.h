// The pieces of a gated FFN. Neurons are cut into chunks that depend on their number alone; a chunk is computed by one
// thread in ascending order into its own partial y, and partials are added in the order of chunks. So the result does
// not depend on the threads, nor on which op walked the chunks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "course.h"
#include "guess.h"
#include "isa.h"
#include "parallel.h"
#include "tensors.h"

namespace prosparse {

// kernels/activation.py says what these mean; the codes are its KINDS.
struct Activation {
  enum Kind : int64_t { kRelu, kFatrelu, kRelu2, kSilu, kKinds };

  int64_t kind;
  float threshold;
  bool on_up;

  bool opens(float g) const { return kind == kSilu || (kind == kFatrelu ? !(g < threshold) : !(g <= 0)); }
  float value(float g) const {
    if (kind == kSilu) return g / (1 + std::exp(-g));
    return opens(g) ? (kind == kRelu2 ? g * g : g) : 0;
  }
  float up(float u) const { return on_up && u <= 0 ? 0 : u; }
};

Activation read_activation(const char* op, int64_t kind, double threshold, bool on_up);

struct Chunks {
  static constexpr int64_t kMost = 32;  // more would balance better and add longer; at 32 both cost about 2 %

  int64_t neurons, size, count;

  explicit Chunks(int64_t n)
      : neurons(n), size(round_up(std::max<int64_t>(1, (n + kMost - 1) / kMost), 16)), count((n + size - 1) / size) {}
  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const { return std::min(neurons, (chunk + 1) * size); }
};

// Neurons of one chunk, ascending, with act(gate) of slot k and token t at value[k * slot_stride + t * token_stride].
struct Listed {
  const int32_t* ids;
  int64_t n;
  const float* value;
  int64_t slot_stride, token_stride;
};

// Whether rows of open neurons are asked for one by one, as the gate opens. Where they are many, they are prefetched in
// the order of their use like those of a dense FFN: asked for at once, they would hold up the gate (0 % zeros: 25 %).
inline bool are_few(int64_t open, int64_t scanned) { return open * 4 <= scanned + 16; }

// Neurons of a chunk whose gate is to be scanned: [begin, begin + n), or n ids, ascending, none less than begin.
struct Looked {
  int64_t begin, n;
  const int32_t* ids;

  int64_t at(int64_t i) const { return ids == nullptr ? begin + i : ids[i]; }
  void add_to(Course& course, const Matrix& gate) const {
    if (ids == nullptr)
      course.add(gate, begin, n);
    else
      course.add(gate, ids, n);
  }
};

// Scans gate rows and lists the neurons that some token opens, or all of them: ids[k], value[k * tokens + t]. Of a neuron that opens, rows of up and down (if given) are asked for at once. `course` starts
// with the gate rows. `bias` (if given) is added to the pre-activations.
int64_t scan_gate(const RowKernels& kernels, const Input& x, const Matrix& gate, const Activation& activation,
                  const Looked& looked, bool all, const Course& course, const Matrix* up, const Matrix* down,
                  int32_t* ids, float* value, const float* bias = nullptr);

// What was done, in the order of kernels/tally.py.
struct Tally {
  int64_t up_rows = 0, down_rows = 0, nonzero = 0, predicted = 0;

  void operator+=(const Tally& other) {
    up_rows += other.up_rows;
    down_rows += other.down_rows;
    nonzero += other.nonzero;
    predicted += other.predicted;
  }
};

struct Ffn {
  const RowKernels& kernels;
  const Input& x;
  const Matrix& up;
  const Matrix& down;
  Activation activation;
  bool dense;  // compute closed neurons as well

  // y += the listed neurons. product [n, tokens] and live [n] are scratch. From `start` on the course holds what is to
  // be prefetched while the up rows, then the down rows are used.
  Tally add(const Listed& listed, const Course& course, int64_t start, float* product, int32_t* live, float* y) const;

  // The same where product is known; up is not read.
  Tally add_products(const Listed& listed, const Course& course, int64_t start, const float* product, int32_t* live,
                     float* y) const;

 private:
  void multiply_up(const Listed& listed, const Course& course, int64_t start, float* product) const;
  void add_down(const Listed& listed, const Course& course, int64_t start, const float* product, const int32_t* live,
                int64_t n_live, float* y) const;
};

// Partial results of the chunks, and their sum.
class Partials {
 public:
  Partials(const Input& x, Format down, int64_t chunks);
  float* clear(int64_t chunk);  // the chunk's y, zeroed; a chunk that is never cleared counts as zero
  void count(int64_t chunk, const Tally& done) { counts_[chunk] = done; }
  // Calls store(t, begin, n, y) from any thread for every piece of the sum, and adds to the tally.
  template <class Store>
  void sum(int64_t* tally, const Store& store) const {
    constexpr int64_t kPiece = 4 * kBlockColumns;
    const int64_t per_token = (x_.columns + kPiece - 1) / kPiece;
    parallel_tasks(x_.tokens * per_token, [&](int64_t piece, Seat) {
      const int64_t t = piece / per_token, begin = piece % per_token * kPiece;
      float total[kPiece];
      add_up(t, begin, std::min(kPiece, x_.stride - begin), total);
      store(t, begin, std::min(kPiece, x_.columns - begin), total);
    });
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      tally[0] += counts_[chunk].up_rows;
      tally[1] += counts_[chunk].down_rows;
      tally[2] += counts_[chunk].nonzero;
      tally[3] += counts_[chunk].predicted;
    }
  }

 private:
  // The parts of all chunks, in order, of n padded columns.
  void add_up(int64_t t, int64_t begin, int64_t n, float* total) const;

  const Input& x_;
  Format down_;
  int64_t chunks_, floats_;
  float* data_;
  Tally counts_[Chunks::kMost];
  bool used_[Chunks::kMost] = {};
};

// A list of neurons that comes from outside, ascending.
struct Given {
  const int32_t* ids;
  int64_t n;
};

// Checks one: an id that is out of range would read beyond the weights.
Given read_list(const char* op, const Tensor& index, const Tensor& count, int64_t neurons);

// gate, up and down of one layer, and what happens between them.
struct Glu {
  Matrix gate, up, down;
  Activation activation;
  bool dense;
  bool has_up = true;
  const float* gate_bias = nullptr;
  const Asked* asked = nullptr;  // what says which neurons to look at: this,
  const Given* given = nullptr;  // or this; else all are

  static Upcoming upcoming(const Matrix& gate) {
    const Chunks chunks(gate.rows);
    return {&gate, chunks.begin(chunks.count - 1)};
  }
};

// Every chunk of the neurons into its partial result.
void add_chunks(const Glu& glu, const Input& x, Partials& partials, const Upcoming& upcoming);

// Calls store(t, begin, n, y) for the pieces of the output, see Partials. x is prepared for the weights.
template <class Store>
void run_glu(const Glu& glu, const Input& x, int64_t* tally, const Store& store, const Upcoming& upcoming = {}) {
  Partials partials(x, glu.down.format, Chunks(glu.gate.rows).count);
  add_chunks(glu, x, partials, upcoming);
  partials.sum(tally, store);
}

Glu read_glu(const char* op, const Tensor& gate, const Tensor& up, const Tensor& down, int64_t columns,
             const Activation& activation, bool dense);

// glu_exact, glu_dense and, with the index and the count of a list, glu_predicted.
Tensor whole_ffn(const char* op, const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down,
                 const Activation& activation, const Tensor& tally, bool dense, const Tensor* index = nullptr,
                 const Tensor* count = nullptr);

}  // namespace prosparse
