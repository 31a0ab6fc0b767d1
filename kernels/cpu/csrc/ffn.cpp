#include "ffn.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "pairs.h"
#include "parallel.h"
#include "require.h"
#include "workspace.h"

namespace prosparse {
namespace {

// The rows of up to kRows ids; where there are fewer, the last one repeats and stays in cache.
struct Group {
  const void* rows[kRows];

  Group(const Matrix& matrix, const int32_t* ids, int64_t n) {
    for (int64_t i = 0; i < kRows; ++i) rows[i] = matrix.row(ids[std::min(i, n - 1)]);
  }
};

}  // namespace

Activation read_activation(const char* op, int64_t kind, double threshold, bool on_up) {
  require(0 <= kind && kind < Activation::kKinds, op, ": activation code ", kind, " is not known (0 to ",
          Activation::kKinds - 1, ")");
  return {kind, static_cast<float>(threshold), on_up};
}

int64_t scan_gate(const RowKernels& kernels, const Input& x, const Matrix& gate, const Activation& activation,
                  const Looked& looked, bool all, const Course& course, const Matrix* up, const Matrix* down,
                  int32_t* ids, float* value, const float* bias) {
  int64_t n = 0;
  for (int64_t first = 0; first < looked.n; first += kRows) {
    const void* rows[kRows];
    for (int64_t i = 0; i < kRows; ++i) rows[i] = gate.row(looked.at(std::min(first + i, looked.n - 1)));
    Course::Group next = course.ahead(first);
    // Where many open, the first of their rows come next, not another chunk's gate.
    const int64_t beyond = first + course.distance() - looked.n;
    if (down != nullptr && beyond > -kRows && n > kRows && !are_few(n, looked.at(first) - looked.begin))
      for (int64_t i = std::max<int64_t>(0, -beyond); i < kRows; ++i)
        next.rows[i] = (up != nullptr ? up : down)->row(ids[std::min(beyond + i, n - 1)]);
    float g[kRows * kMaxTokens];
    kernels.dot[gate.format](rows, next.rows, x.prepared, x.prepared_bytes, x.tokens, x.columns, g);
    for (int64_t i = 0; i < std::min(kRows, looked.n - first); ++i) {
      const int64_t neuron = looked.at(first + i);
      if (bias != nullptr)
        for (int64_t t = 0; t < x.tokens; ++t) g[i * x.tokens + t] += bias[neuron];
      bool open = all;
      for (int64_t t = 0; t < x.tokens; ++t) open |= activation.opens(g[i * x.tokens + t]);
      if (!open) continue;
      if (down != nullptr && are_few(n, neuron - looked.begin)) {
        if (up != nullptr) request(*up, neuron);
        request(*down, neuron);
      }
      for (int64_t t = 0; t < x.tokens; ++t) value[n * x.tokens + t] = activation.value(g[i * x.tokens + t]);
      ids[n++] = static_cast<int32_t>(neuron);
    }
  }
  return n;
}

void Ffn::multiply_up(const Listed& listed, const Course& course, int64_t start, float* product) const {
  Pairs pairs(*this);
  for (int64_t first = 0; first < listed.n; first += kRows) {
    const int64_t n = std::min(kRows, listed.n - first);
    const Group group(up, listed.ids + first, n);
    const float* value = listed.value + first * listed.slot_stride;
    float* h = product + first * x.tokens;
    int64_t wanted = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t t = 0; t < x.tokens; ++t) wanted += value[i * listed.slot_stride + t * listed.token_stride] != 0;
    const bool together = dense || 2 * wanted > n * x.tokens;  // which way is faster; the bits are the same
    const Course::Group next = course.ahead(start + first);
    float u[kRows * kMaxTokens];
    if (together) kernels.dot[up.format](group.rows, next.rows, x.prepared, x.prepared_bytes, x.tokens, x.columns, u);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t t = 0; t < x.tokens; ++t) {
        const float v = value[i * listed.slot_stride + t * listed.token_stride];
        float* to = h + i * x.tokens + t;
        if (v == 0)
          *to = 0;  // closed, even if up overflowed
        else if (together)
          *to = v * activation.up(u[i * x.tokens + t]);
        else
          pairs.push(group.rows[i], next.rows, t, v, to);
      }
    }
  }
  pairs.finish();
}

void Ffn::add_down(const Listed& listed, const Course& course, int64_t start, const float* product,
                   const int32_t* live, int64_t n_live, float* y) const {
  Sums sums[kMaxTokens];
  for (int64_t first = 0; first < n_live; first += kRows) {
    const Course::Group next = course.ahead(start + first);
    for (int64_t k = first; k < std::min(first + kRows, n_live); ++k) {
      const void* row = down.row(listed.ids[live[k]]);
      const float* h = product + live[k] * x.tokens;
      for (int64_t t = 0; t < x.tokens; ++t)
        if (h[t] != 0 || dense) sums[t].push(*this, row, h[t], next.rows, y + t * x.stride);  // else another token's
    }
  }
  for (int64_t t = 0; t < x.tokens; ++t) sums[t].finish(*this, y + t * x.stride);
}

Tally Ffn::add(const Listed& listed, const Course& course, int64_t start, float* product, int32_t* live,
               float* y) const {
  multiply_up(listed, course, start, product);
  return add_products(listed, course, start + listed.n, product, live, y);
}

Tally Ffn::add_products(const Listed& listed, const Course& course, int64_t start, const float* product, int32_t* live,
                        float* y) const {
  int64_t nonzero = 0, n_live = 0;
  for (int64_t k = 0; k < listed.n; ++k) {
    int64_t needed = 0;
    for (int64_t t = 0; t < x.tokens; ++t) needed += product[k * x.tokens + t] != 0;
    if (needed > 0 || dense) live[n_live++] = static_cast<int32_t>(k);
    nonzero += needed;
  }
  add_down(listed, course, start, product, live, n_live, y);
  return {listed.n, n_live, nonzero};
}

Partials::Partials(const Input& x, Format down, int64_t chunks)
    : x_(x), down_(down), chunks_(chunks), floats_(x.tokens * x.stride), data_(workspace().partial.at_least(chunks * floats_)) {}

float* Partials::clear(int64_t chunk) {
  used_[chunk] = true;
  float* y = data_ + chunk * floats_;
  std::memset(y, 0, floats_ * sizeof(float));
  return y;
}

void Partials::add_up(int64_t t, int64_t begin, int64_t n, float* total) const {
  float sums[4 * kBlockColumns] = {};
  for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
    if (!used_[chunk]) continue;
    const float* part = data_ + chunk * floats_ + t * x_.stride + begin;
    for (int64_t i = 0; i < n; ++i) sums[i] += part[i];
  }
  if (down_ == kInt4)
    for (int64_t i = 0; i < n; i += kBlockColumns) restore(sums + i, total + i);
  else
    std::memcpy(total, sums, n * sizeof(float));
}

Glu read_glu(const char* op, const Tensor& gate, const Tensor& up, const Tensor& down, int64_t columns,
             const Activation& activation, bool dense) {
  const Glu glu{read_matrix(op, "gate", gate, columns), read_matrix(op, "up", up, columns),
                read_matrix(op, "down", down, columns), activation, dense};
  require(glu.gate.rows == glu.up.rows && glu.up.rows == glu.down.rows, op, ": gate, up and down have ", glu.gate.rows,
          ", ", glu.up.rows, " and ", glu.down.rows, " neurons; they must agree");
  require(glu.gate.format == glu.up.format && glu.up.format == glu.down.format, op,
          ": gate, up and down must share a dtype");
  return glu;
}

Given read_list(const char* op, const Tensor& index, const Tensor& count, int64_t neurons) {
  const int32_t* ids = read_int32(op, "index", index);
  const int32_t* counted = read_int32(op, "count", count);
  const int64_t capacity = index.numel();
  require(count.numel() == 1, op, ": count must be one int32, got ", count.numel(), " elements");
  const int64_t n = *counted;
  require(0 <= n && n <= capacity, op, ": count is ", n, " but the list has capacity ", capacity, "; select again");
  if (n == 0) return {ids, n};
  const auto [low, high] = std::minmax_element(ids, ids + n);
  require(0 <= *low && *high < neurons, op, ": index holds ", *low, "..", *high, " but there are ", neurons, " neurons");
  for (int64_t k = 1; k < n; ++k)
    require(ids[k - 1] < ids[k], op, ": index must ascend, but slot ", k, " holds ", ids[k], " after ", ids[k - 1],
            "; sort the list");
  return {ids, n};
}

void add_chunks(const Glu& glu, const Input& x, Partials& partials, const Upcoming& upcoming) {
  const RowKernels& kernels = row_kernels();
  const Ffn ffn{kernels, x, glu.up, glu.down, glu.activation, glu.dense};
  const Matrix* up = glu.has_up ? &glu.up : nullptr;
  const Chunks chunks(glu.gate.rows);
  Workspace& memory = workspace();
  int32_t* ids = memory.listed.at_least(glu.gate.rows);
  int32_t* live = memory.live.at_least(glu.gate.rows);
  float* value = memory.value.at_least(glu.gate.rows * x.tokens);
  float* product = memory.product.at_least(glu.gate.rows * x.tokens);
  int64_t counts[Chunks::kMost];
  const int32_t* named = nullptr;
  if (glu.asked != nullptr) {
    int32_t* own = memory.named.at_least(glu.gate.rows);
    scan_guess(*glu.asked, &glu.gate, own, counts);
    named = own;
  }
  const auto look = [&](int64_t chunk) -> Looked {
    const int64_t begin = chunks.begin(chunk), end = chunks.end(chunk);
    if (named != nullptr) return {begin, counts[chunk], named + begin};
    if (glu.given == nullptr) return {begin, end - begin, nullptr};
    const int32_t *first = glu.given->ids, *last = first + glu.given->n;
    first = std::lower_bound(first, last, begin);
    return {begin, std::lower_bound(first, last, end) - first, first};
  };
  parallel_tasks(chunks.count, [&](int64_t chunk, Seat seat) {
    const int64_t begin = chunks.begin(chunk), size = chunks.end(chunk) - begin, at = begin * x.tokens;
    const Looked looked = look(chunk), then = look(seat.then);
    Course course;
    looked.add_to(course, glu.gate);
    if (glu.dense) {
      if (up != nullptr) course.add(*up, begin, size);
      course.add(glu.down, begin, size);
    }
    then.add_to(course, glu.gate);
    Tally done;
    if (looked.ids != nullptr) done.predicted = looked.n;
    const int64_t n =
        scan_gate(kernels, x, glu.gate, glu.activation, looked, glu.dense, course, glu.dense ? nullptr : up,
                  glu.dense ? nullptr : &glu.down, ids + begin, value + at, glu.gate_bias);
    if (n > 0) {
      const Listed listed{ids + begin, n, value + at, x.tokens, 1};
      int64_t start = looked.n;
      if (!glu.dense && !are_few(n, size)) {
        start = 0;
        course = Course();
        if (up != nullptr) course.add(*up, listed.ids, n);
        course.add(glu.down, listed.ids, n);
        then.add_to(course, glu.gate);
      }
      float* y = partials.clear(chunk);
      done += up != nullptr ? ffn.add(listed, course, start, product + at, live + begin, y)
                            : ffn.add_products(listed, course, start, value + at, live + begin, y);
    }
    partials.count(chunk, done);
    upcoming.request(chunk, seat);
  });
}

Tensor whole_ffn(const char* op, const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down,
                 const Activation& activation, const Tensor& tally, bool dense, const Tensor* index,
                 const Tensor* count) {
  Input in = read_input(op, x);
  Glu glu = read_glu(op, gate, up, down, in.columns, activation, dense);
  Given given;
  if (index != nullptr) {
    given = read_list(op, *index, *count, glu.gate.rows);
    glu.given = &given;
  }
  int64_t* done = read_tally(op, tally);
  prepare(in, glu.gate.format);
  Tensor out = torch::stable::new_empty(x, {in.tokens, in.columns});
  void* to = out.mutable_data_ptr();
  run_glu(glu, in, done, [&](int64_t t, int64_t begin, int64_t n, const float* y) {
    write_row(y, n, in.format, to, t * in.columns + begin);
  });
  return out;
}

}  // namespace prosparse
