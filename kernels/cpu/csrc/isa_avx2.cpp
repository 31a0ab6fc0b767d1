// Row kernels for AVX2 with FMA and F16C.
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,popcnt")
#endif

namespace prosparse {
namespace {

typedef __m256 Vec;
constexpr int64_t kLanes = 8;
constexpr int64_t kTile = 2;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float a) { return _mm256_set1_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline __m128i load_8x16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const Half* p) { return _mm256_cvtph_ps(load_8x16(p)); }
inline Vec load(const Bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_8x16(p)), 16));
}

inline float sum(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

template <class W>
inline Vec load_tail(const W* p, int64_t n) {
  W padded[kLanes] = {};
  std::memcpy(padded, p, n * sizeof(W));
  return load(padded);
}

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};
typedef Ints Codes;
typedef Ints Words;
constexpr int64_t kPackedTile = 1;

inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Floats floats_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats floats_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void floats_store(float* p, Floats a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline Floats floats_all(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline Floats floats_fma(Floats a, Floats b, Floats c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }
inline Floats floats_mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline float floats_sum(Floats a) { return sum(_mm256_add_ps(a.low, a.high)); }
inline Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline Ints ints_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints ints_load(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
inline Ints multiply_add(Ints sums, Codes w, const int16_t* x) {
  return {_mm256_add_epi32(sums.low, _mm256_madd_epi16(w.low, load_256(x))),
          _mm256_add_epi32(sums.high, _mm256_madd_epi16(w.high, load_256(x + 16)))};
}
inline Codes widen_int8(const char* p) {
  return {_mm256_cvtepi8_epi16(load_8x16(p)), _mm256_cvtepi8_epi16(load_8x16(p + 16))};
}
inline Floats int8_floats(const char* p) {
  const __m128i codes = load_8x16(p);
  return to_floats({_mm256_cvtepi8_epi32(codes), _mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8))});
}
inline Words words_load(const char* p) { return {load_256(p), load_256(p + 32)}; }

template <int K>
inline Codes nibble(Words words) {
  const __m256i mask = _mm256_set1_epi16(15);
  return {_mm256_and_si256(_mm256_srli_epi16(words.low, 4 * K), mask),
          _mm256_and_si256(_mm256_srli_epi16(words.high, 4 * K), mask)};
}

template <int I>
inline __m256 eight_word_floats(__m256i words) {
  const __m256i codes = _mm256_and_si256(_mm256_srli_epi32(words, 4 * I), _mm256_set1_epi32(15));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(8)));
}
template <int I>
inline Floats word_floats(Words words) {
  return {eight_word_floats<I>(words.low), eight_word_floats<I>(words.high)};
}

inline Floats spread(const char* scales) {
  int64_t four;
  std::memcpy(&four, scales, sizeof four);
  const __m256i all = _mm256_set1_epi64x(four);
  const __m256i low = _mm256_setr_epi32(0x01008080, 0x01008080, 0x01008080, 0x01008080, 0x03028080, 0x03028080,
                                        0x03028080, 0x03028080);
  const __m256i high = _mm256_setr_epi32(0x05048080, 0x05048080, 0x05048080, 0x05048080, 0x07068080, 0x07068080,
                                         0x07068080, 0x07068080);
  return {_mm256_castsi256_ps(_mm256_shuffle_epi8(all, low)), _mm256_castsi256_ps(_mm256_shuffle_epi8(all, high))};
}

#include "rows.inc"
#include "packed.inc"
#include "rounding.inc"

}  // namespace

constexpr RowKernels kAvx2Kernels = make_table("avx2");

}  // namespace prosparse

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
