// Row kernels for AVX-512 with VNNI: the same bits, one instruction less in each product of a packed weight.
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own headers: bug 105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace prosparse {
namespace {

inline __m512i dot_int16(__m512i sums, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sums, a, b); }

#include "avx512.inc"
#include "rows.inc"
#include "packed.inc"
#include "rounding.inc"

}  // namespace

constexpr RowKernels kAvx512VnniKernels = make_table("avx512vnni");

}  // namespace prosparse

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
