// All layers of one decode step in one call; kernels/decode_layers.py says what it means.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <optional>
#include <vector>

#include "attend.h"
#include "ffn.h"
#include "linear.h"
#include "require.h"
#include "rms_norm.h"
#include "rotary_store.h"
#include "workspace.h"

namespace prosparse {
namespace {

constexpr const char* kOp = "decode_layers";
constexpr int64_t kPerLayer = 7;  // tensors: attention norm, qkv, o, FFN norm, gate, up, down

const float* read_floats(const char* name, const Tensor& tensor, int64_t n) {
  require(tensor.is_cpu() && tensor.is_contiguous() && tensor.numel() == n && read_format(kOp, name, tensor) == kFp32, kOp,
          ": ", name, " must hold ", n, " contiguous float32 numbers on the CPU");
  return static_cast<const float*>(tensor.const_data_ptr());
}

// A cache of all layers: [layers, slots, kv_heads, context, head_dim].
struct Cache {
  char* data;
  int64_t layers, slots, kv_heads, context, head_dim, item;
  Format format;

  Cache(const char* name, const Tensor& tensor) {
    require(tensor.is_cpu() && tensor.dim() == 5 && tensor.is_contiguous(), kOp, ": ", name,
            " must be contiguous [layers, slots, kv_heads, context, head_dim] on the CPU");
    data = static_cast<char*>(tensor.mutable_data_ptr());
    layers = tensor.size(0), slots = tensor.size(1), kv_heads = tensor.size(2), context = tensor.size(3);
    head_dim = tensor.size(4), item = static_cast<int64_t>(tensor.element_size());
    format = read_format(kOp, name, tensor);
  }
  Cached of(int64_t layer, int64_t slot, int64_t length) const {
    char* first = data + (layer * slots + slot) * kv_heads * context * head_dim * item;
    return {first, kv_heads, length, head_dim, context * head_dim, head_dim, item, format};
  }
};

struct Sequences {
  const std::vector<int64_t>&slots, &starts;
  int64_t rows;  // new tokens of each
  const float *cos, *sin;
};

struct Step {
  float* residual;  // [tokens, hidden]
  int64_t tokens, hidden;
  float eps, scale;

  // The normed residual, prepared for a weight.
  Input normed(const float* weight, Format format) const {
    const int64_t stride = round_up(hidden, kBlockColumns);
    float* data = workspace().normed.at_least(tokens * stride);
    for (int64_t t = 0; t < tokens; ++t) {
      normalize(residual + t * hidden, hidden, weight, eps, data + t * stride);
      std::memset(data + t * stride + hidden, 0, (stride - hidden) * sizeof(float));
    }
    return padded(data, hidden, stride, format);
  }

  // The residual itself, for a guess that is made from it.
  Input raw() const {
    const int64_t stride = round_up(hidden, kBlockColumns);
    float* data = workspace().residual.at_least(tokens * stride);
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(data + t * stride, residual + t * hidden, hidden * sizeof(float));
      std::memset(data + t * stride + hidden, 0, (stride - hidden) * sizeof(float));
    }
    return padded(data, hidden, stride, kFp32);
  }

  Input padded(const float* data, int64_t columns, int64_t stride, Format format) const {
    Input x{data, tokens, columns, stride, kFp32, reinterpret_cast<const char*>(data),
            stride * static_cast<int64_t>(sizeof(float))};
    prepare(x, format);
    return x;
  }

  // residual += scale * y, for a piece of token t
  void add(int64_t t, int64_t begin, int64_t n, const float* y) const {
    const void* const rows[kRows] = {y, y, y, y};
    float* to = residual + t * hidden + begin;
    alignas(64) float whole[kPadding] = {};
    const int64_t full = n / kPadding * kPadding;
    const auto axpy = row_kernels().axpy[kFp32];
    if (full > 0) axpy(rows, rows, &scale, 1, full, to);
    if (full < n) {  // axpy writes whole vectors
      std::memcpy(whole, to + full, (n - full) * sizeof(float));
      const void* const rest[kRows] = {y + full, y + full, y + full, y + full};
      axpy(rest, rest, &scale, 1, n - full, whole);
      std::memcpy(to + full, whole, (n - full) * sizeof(float));
    }
  }
};

struct Layer {
  const float *norm, *bias, *ffn_norm;
  Matrix qkv, o;
  Glu glu;
  Guess guess;

  Layer(const Tensor* own, const Tensor* qkv_bias, int64_t guess_code, const Tensor* guess_tensors, int64_t hidden, const Cache& cache, const Activation& activation,
        bool dense)
      : norm(read_floats("attention norm", own[0], hidden)),
        bias(nullptr),
        ffn_norm(read_floats("FFN norm", own[3], hidden)),
        qkv(read_matrix(kOp, "qkv", own[1], hidden)),
        o(read_matrix(kOp, "o", own[2], qkv.rows - 2 * cache.kv_heads * cache.head_dim)),
        glu(read_glu(kOp, own[4], own[5], own[6], hidden, activation, dense)) {
    const int64_t heads = qkv.rows / cache.head_dim - 2 * cache.kv_heads;
    require(qkv.rows % cache.head_dim == 0 && heads > 0 && heads % cache.kv_heads == 0, kOp, ": qkv has ", qkv.rows,
            " rows, which does not fit the cache");
    require(o.rows == hidden, kOp, ": o has ", o.rows, " rows, hidden is ", hidden);
    if (qkv_bias != nullptr) bias = read_floats("bias", *qkv_bias, qkv.rows);
    if (guess_code != 0) guess = read_guess(kOp, guess_code, guess_tensors, glu.gate.rows, hidden);
  }
  Upcoming upcoming() const { return guess.code != 0 ? guess.upcoming() : Glu::upcoming(glu.gate); }
};

void attention(const Step& step, const Layer& own, const Cache& keys, const Cache& values, int64_t layer,
               const Sequences& sequences, int64_t window) {
  const Matrix &qkv = own.qkv, &o = own.o;
  const float* bias = own.bias;
  const int64_t width = qkv.rows, head_dim = keys.head_dim, heads = width / head_dim - 2 * keys.kv_heads;
  const int64_t columns = heads * head_dim, stride = round_up(columns, kBlockColumns), rows = sequences.rows;
  Workspace& memory = workspace();
  float* x = memory.heads.at_least(step.tokens * width);
  const auto store = [&](int64_t t, int64_t begin, int64_t n, const float* y) {
    float* to = x + t * width + begin;
    std::memcpy(to, y, n * sizeof(float));
    if (bias != nullptr)
      for (int64_t i = 0; i < n; ++i) to[i] += bias[begin + i];
  };
  multiply(step.normed(own.norm, qkv.format), qkv, store, Pieces::upcoming(o));
  float* queries = memory.queries.at_least(rows * columns);
  float* attended = memory.attended.at_least(step.tokens * stride + columns);
  for (size_t s = 0; s < sequences.slots.size(); ++s) {
    const int64_t first = static_cast<int64_t>(s) * rows, start = sequences.starts[s], half = head_dim / 2;
    const Cached k = keys.of(layer, sequences.slots[s], start + rows);
    const Cached v = values.of(layer, sequences.slots[s], start + rows);
    rotate_and_store(x + first * width, rows, heads, sequences.cos + first * half, sequences.sin + first * half, k, v,
                     start, queries);
    attend(queries, rows, heads, k, v, start, window, stride, attended + first * stride, Pieces::upcoming(o));
  }
  for (int64_t t = 0; t < step.tokens; ++t)
    std::memset(attended + t * stride + columns, 0, (stride - columns) * sizeof(float));
  multiply(step.padded(attended, columns, stride, o.format), o,
           [&](int64_t t, int64_t begin, int64_t n, const float* y) { step.add(t, begin, n, y); },
           own.upcoming());
}

Tensor decode_layers(const Tensor& residual, std::vector<Tensor> weights, std::vector<Tensor> biases,
                     std::vector<Tensor> guess_tensors, std::vector<int64_t> guesses, std::vector<int64_t> dense, const Tensor& keys, const Tensor& values, const Tensor& cos,
                     const Tensor& sin, std::vector<int64_t> slots, std::vector<int64_t> starts, int64_t window,
                     double eps, double scale, int64_t kind, double threshold, bool on_up, const Tensor& tally) {
  require(residual.is_cpu() && residual.dim() == 2 && residual.is_contiguous(), kOp,
          ": residual must be contiguous [tokens, hidden] on the CPU");
  const int64_t tokens = residual.size(0), hidden = residual.size(1), layers = static_cast<int64_t>(dense.size());
  const int64_t sequences = static_cast<int64_t>(slots.size());
  const Cache k("keys", keys), v("values", values);
  require(1 <= tokens && tokens <= kMaxTokens && sequences > 0 && tokens % sequences == 0 &&
              slots.size() == starts.size(),
          kOp, ": ", tokens, " tokens for ", slots.size(), " slots at ", starts.size(), " starts");
  require(guesses.size() == dense.size(), kOp, ": ", guesses.size(), " guess codes for ", layers, " layers");
  require(weights.size() == dense.size() * kPerLayer && (biases.empty() || biases.size() == dense.size()), kOp, ": ",
          weights.size(), " weights and ", biases.size(), " biases for ", layers, " layers");
  require(k.layers == layers && v.layers == layers && k.slots == v.slots && k.kv_heads == v.kv_heads &&
              k.context == v.context && k.head_dim == v.head_dim && k.format == v.format && k.head_dim % 2 == 0 &&
              k.head_dim > 0 && k.kv_heads > 0 && window >= 0,
          kOp, ": keys and values must agree, for ", layers, " layers");
  const int64_t rows = tokens / sequences;
  for (int64_t s = 0; s < sequences; ++s)
    require(0 <= slots[s] && slots[s] < k.slots && 0 <= starts[s] && starts[s] + rows <= k.context, kOp, ": slot ",
            slots[s], " at ", starts[s], " with ", rows, " rows is outside a cache of ", k.slots, " slots of ",
            k.context);
  require(tally.is_cpu() && tally.is_contiguous() && tally.dim() == 2 && tally.size(0) == layers && tally.size(1) == 4 &&
              tally.scalar_type() == torch::headeronly::ScalarType::Long,
          kOp, ": tally must be contiguous [layers, 4] int64");
  const Sequences where{slots, starts, rows, read_floats("cos", cos, tokens * k.head_dim / 2),
                        read_floats("sin", sin, tokens * k.head_dim / 2)};
  const Activation activation = read_activation(kOp, kind, threshold, on_up);
  Tensor out = torch::stable::new_empty(residual, {tokens, hidden});
  float* data = static_cast<float*>(out.mutable_data_ptr());
  std::memcpy(data, read_floats("residual", residual, tokens * hidden), tokens * hidden * sizeof(float));
  const Step step{data, tokens, hidden, static_cast<float>(eps), static_cast<float>(scale)};
  int64_t* counts = static_cast<int64_t*>(tally.mutable_data_ptr());
  std::vector<Layer> network;
  size_t used = 0;  // of the guesses' tensors
  for (int64_t layer = 0; layer < layers; ++layer) {
    const size_t own = Guess::tensors(guesses[layer]);
    require(used + own <= guess_tensors.size(), kOp, ": ", guess_tensors.size(), " tensors are too few for the guesses");
    network.emplace_back(weights.data() + layer * kPerLayer, biases.empty() ? nullptr : &biases[layer], guesses[layer],
                         guess_tensors.data() + used, hidden, k, activation, dense[layer] != 0);
    used += own;
  }
  for (int64_t layer = 0; layer < layers; ++layer) {
    const Layer& own = network[layer];
    attention(step, own, k, v, layer, where, window);
    const Upcoming next = layer + 1 < layers ? Pieces::upcoming(network[layer + 1].qkv) : Upcoming{};
    const Input x = step.normed(own.ffn_norm, own.glu.gate.format);
    Glu glu = own.glu;
    std::optional<Asked> asked;
    if (own.guess.code != 0) glu.asked = &asked.emplace(ask(own.guess, x, own.guess.has(Guess::kUnNormed) ? step.raw() : x));
    run_glu(glu, x, counts + layer * 4,
            [&](int64_t t, int64_t begin, int64_t n, const float* y) { step.add(t, begin, n, y); }, next);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(prosparse, CPU, m) { m.impl("decode_layers", TORCH_BOX(&decode_layers)); }

}  // namespace prosparse
