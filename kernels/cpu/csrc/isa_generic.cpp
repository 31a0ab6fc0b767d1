// Row kernels in the compiler's portable vectors: what every machine can run.
#include <cstring>

#include "rows.h"

namespace prosparse {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
constexpr int64_t kTile = 2;

inline Vec zero() { return Vec{}; }
inline Vec broadcast(float a) { return Vec{a, a, a, a}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // two roundings: -ffp-contract=off on every target
inline float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }

inline Vec load(const float* p) {
  Vec a;
  std::memcpy(&a, p, sizeof a);
  return a;
}

inline Bits widen(const uint16_t* p) { return Bits{p[0], p[1], p[2], p[3]}; }
inline Vec load(const Bf16* p) { return reinterpret_cast<Vec>(widen(&p->bits) << 16); }

inline Vec load(const Half* p) {
  const Bits h = widen(&p->bits);
  const Bits magnitude = (h & 0x7fff) << 13;
  const Bits scaled = reinterpret_cast<Bits>(reinterpret_cast<Vec>(magnitude) * 0x1p112f);  // exact, subnormals too
  const Bits special = reinterpret_cast<Bits>(magnitude >= 0x0f800000);                     // inf and NaN
  return reinterpret_cast<Vec>(scaled | (special & 0x7f800000) | (h & 0x8000) << 16);
}

template <class W>
inline Vec load_tail(const W* p, int64_t n) {
  W padded[kLanes] = {};
  std::memcpy(padded, p, n * sizeof(W));
  return load(padded);
}

struct Floats {
  float lane[16];
};
struct Ints {
  int32_t lane[16];
};
struct Codes {
  int16_t lane[32];
};
struct Words {
  uint32_t lane[16];
};
constexpr int64_t kPackedTile = 1;

// f(lane) for each of 16
template <class T, class F>
inline T each(const F& f) {
  T result;
  for (int l = 0; l < 16; ++l) result.lane[l] = f(l);
  return result;
}

inline Floats floats_all(float a) {
  return each<Floats>([&](int) { return a; });
}
inline Floats floats_zero() { return floats_all(0); }
inline Floats floats_load(const float* p) {
  return each<Floats>([&](int l) { return p[l]; });
}
inline void floats_store(float* p, const Floats& a) { std::memcpy(p, a.lane, sizeof a.lane); }
inline Floats floats_fma(const Floats& a, const Floats& b, const Floats& c) {
  return each<Floats>([&](int l) { return a.lane[l] * b.lane[l] + c.lane[l]; });
}
inline Floats floats_mul(const Floats& a, const Floats& b) {
  return each<Floats>([&](int l) { return a.lane[l] * b.lane[l]; });
}
inline float floats_sum(const Floats& a) {
  float total = 0;
  for (const float lane : a.lane) total += lane;
  return total;
}
inline Floats to_floats(const Ints& a) {
  return each<Floats>([&](int l) { return static_cast<float>(a.lane[l]); });
}
inline Ints ints_load(const int32_t* p) {
  return each<Ints>([&](int l) { return p[l]; });
}
inline Ints ints_zero() {
  return each<Ints>([](int) { return 0; });
}
inline Ints multiply_add(const Ints& sums, const Codes& w, const int16_t* x) {
  return each<Ints>([&](int l) { return sums.lane[l] + w.lane[2 * l] * x[2 * l] + w.lane[2 * l + 1] * x[2 * l + 1]; });
}
inline Codes widen_int8(const char* p) {
  Codes codes;
  for (int i = 0; i < 32; ++i) codes.lane[i] = static_cast<signed char>(p[i]);
  return codes;
}
inline Floats int8_floats(const char* p) {
  return each<Floats>([&](int l) { return static_cast<float>(static_cast<signed char>(p[l])); });
}
inline Words words_load(const char* p) {
  Words words;
  std::memcpy(words.lane, p, sizeof words.lane);
  return words;
}
template <int K>
inline Codes nibble(const Words& words) {
  Codes codes;
  for (int i = 0; i < 32; ++i)
    codes.lane[i] = static_cast<int16_t>(words.lane[i / 2] >> (16 * (i % 2) + 4 * K) & 15);
  return codes;
}
template <int I>
inline Floats word_floats(const Words& words) {
  return each<Floats>([&](int l) { return static_cast<float>(static_cast<int32_t>(words.lane[l] >> (4 * I) & 15) - 8); });
}
inline Floats spread(const char* scales) {
  uint16_t four[4];
  std::memcpy(four, scales, sizeof four);
  return each<Floats>([&](int l) { return __builtin_bit_cast(float, static_cast<uint32_t>(four[l / 4]) << 16); });
}

#include "rows.inc"
#include "packed.inc"
#include "rounding.inc"

}  // namespace

constexpr RowKernels kGenericKernels = make_table("generic");

}  // namespace prosparse
