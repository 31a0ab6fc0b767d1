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

#include "rows.inc"

}  // namespace

constexpr RowKernels kGenericKernels = make_table("generic");

}  // namespace prosparse
