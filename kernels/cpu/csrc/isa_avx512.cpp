// Row kernels for AVX-512.
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,popcnt")
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own headers: bug 105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace prosparse {
namespace {

inline __m512i dot_int16(__m512i sums, __m512i a, __m512i b) {
  return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));
}

#include "avx512.inc"
#include "rows.inc"
#include "packed.inc"
#include "rounding.inc"

}  // namespace

constexpr RowKernels kAvx512Kernels = make_table("avx512");

}  // namespace prosparse

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
