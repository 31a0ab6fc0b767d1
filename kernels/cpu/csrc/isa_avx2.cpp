// Row kernels for AVX2 with FMA and F16C.
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
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

#include "rows.inc"

}  // namespace

constexpr RowKernels kAvx2Kernels = make_table("avx2");

}  // namespace prosparse

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
