// Row kernels for AVX-512. bf16 goes through shift and FMA, not vdpbf16ps, which would round x to bf16 (2e-3 against
// 2e-7) and is no faster where memory is the limit.
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own headers: bug 105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace prosparse {
namespace {

typedef __m512 Vec;
constexpr int64_t kLanes = 16;
constexpr int64_t kTile = 4;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float a) { return _mm512_set1_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec widen_bf16(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec load(const Bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vec load_tail(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline Vec load_tail(const Half* p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
inline Vec load_tail(const Bf16* p, int64_t n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }

#include "rows.inc"

}  // namespace

constexpr RowKernels kAvx512Kernels = make_table("avx512");

}  // namespace prosparse

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
