// Row kernels for NEON, which every 64-bit Arm processor has. Lanes and sums are those of AVX2, and so are the bits.
#include "rows.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>

namespace prosparse {
namespace {

struct Vec {
  float32x4_t low, high;
};
constexpr int64_t kLanes = 8;
constexpr int64_t kTile = 2;

inline Vec zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
inline Vec broadcast(float a) { return {vdupq_n_f32(a), vdupq_n_f32(a)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline void store(float* p, Vec a) {
  vst1q_f32(p, a.low);
  vst1q_f32(p + 4, a.high);
}
inline Vec load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline Vec load(const Half* p) {
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
inline Vec load(const Bf16* p) {  // zeros below every number: older cores zip on more pipes than they shift on
  const uint16x8_t numbers = vld1q_u16(&p->bits), zeros = vdupq_n_u16(0);
  return {vreinterpretq_f32_u16(vzip1q_u16(zeros, numbers)), vreinterpretq_f32_u16(vzip2q_u16(zeros, numbers))};
}

inline float sum(float32x4_t four) {
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float sum(Vec a) { return sum(vaddq_f32(a.low, a.high)); }

template <class W>
inline Vec load_tail(const W* p, int64_t n) {
  W padded[kLanes] = {};
  std::memcpy(padded, p, n * sizeof(W));
  return load(padded);
}

struct Floats {
  float32x4_t part[4];
};
struct Ints {  // products of codes 8i to 8i + 3 and 8i + 4 to 8i + 7 in pair[2i] and pair[2i + 1]: neighbours meet later
  int32x4_t pair[8], base[4];
};
struct Codes {
  int16x8_t part[4];
};
struct Words {
  uint8x16_t part[4];
};
constexpr int64_t kPackedTile = 1;

// f(i) for each of 4
template <class T, class F>
[[gnu::always_inline]] inline T each(const F& f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline Floats floats_all(float a) {
  return each<Floats>([&](int) { return vdupq_n_f32(a); });
}
inline Floats floats_zero() { return floats_all(0); }
inline Floats floats_load(const float* p) {
  return each<Floats>([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline void floats_store(float* p, const Floats& a) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.part[i]);
}
inline Floats floats_fma(const Floats& a, const Floats& b, const Floats& c) {
  return each<Floats>([&](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
}
inline Floats floats_mul(const Floats& a, const Floats& b) {
  return each<Floats>([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
}
inline float floats_sum(const Floats& a) {
  return sum(vaddq_f32(vaddq_f32(a.part[0], a.part[2]), vaddq_f32(a.part[1], a.part[3])));
}
inline Floats to_floats(const Ints& a) {
  return each<Floats>([&](int i) {
    return vcvtq_f32_s32(vaddq_s32(a.base[i], vpaddq_s32(a.pair[2 * i], a.pair[2 * i + 1])));
  });
}
inline Ints ints_zero() { return {}; }
inline Ints ints_load(const int32_t* p) {
  return {{}, {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}};
}
inline Ints multiply_add(Ints sums, const Codes& w, const int16_t* x) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int16x8_t factors = vld1q_s16(x + 8 * i);
    sums.pair[2 * i] = vmlal_s16(sums.pair[2 * i], vget_low_s16(w.part[i]), vget_low_s16(factors));
    sums.pair[2 * i + 1] = vmlal_high_s16(sums.pair[2 * i + 1], w.part[i], factors);
  }
  return sums;
}
inline int8x16_t load_16x8(const char* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); }
inline Codes widen_int8(const char* p) {
  const int8x16_t a = load_16x8(p), b = load_16x8(p + 16);
  return {{vmovl_s8(vget_low_s8(a)), vmovl_high_s8(a), vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b)}};
}

// Byte first + l step into the highest byte of lane l, and zeros below.
[[gnu::always_inline]] inline int32x4_t highest_byte(uint8x16_t bytes, int first, int step) {
  const uint8_t a = static_cast<uint8_t>(first), b = static_cast<uint8_t>(first + step);
  const uint8_t c = static_cast<uint8_t>(first + 2 * step), d = static_cast<uint8_t>(first + 3 * step);
  constexpr uint8_t kNone = 255;
  const uint8x16_t from = {kNone, kNone, kNone, a, kNone, kNone, kNone, b, kNone, kNone, kNone, c, kNone, kNone, kNone, d};
  return vreinterpretq_s32_u8(vqtbl1q_u8(bytes, from));
}
inline Floats int8_floats(const char* p) {
  const uint8x16_t codes = vreinterpretq_u8_s8(load_16x8(p));
  return each<Floats>([&](int i) { return vcvtq_n_f32_s32(highest_byte(codes, 4 * i, 1), 24); });
}

inline Words words_load(const char* p) {
  return each<Words>([&](int i) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p) + 16 * i); });
}

template <int K>
inline Codes nibble(const Words& words) {
  return each<Codes>([&](int i) {
    uint16x8_t codes = vreinterpretq_u16_u8(words.part[i]);
    if constexpr (K > 0) codes = vshrq_n_u16(codes, 4 * K);
    if constexpr (K < 3) codes = vandq_u16(codes, vdupq_n_u16(15));
    return vreinterpretq_s16_u16(codes);
  });
}

// Four words of codes, apart, each code in the upper half of a byte. Less 8 is its highest bit turned over.
struct Apart {
  uint8x16_t even, odd;
  Apart() = default;
  explicit Apart(uint8x16_t words) {
    const uint8x16_t codes = veorq_u8(words, vdupq_n_u8(0x88));
    even = vshlq_n_u8(codes, 4);
    odd = vandq_u8(codes, vdupq_n_u8(0xf0));
  }
  [[gnu::always_inline]] float32x4_t floats(int i) const {
    return vcvtq_n_f32_s32(highest_byte(i % 2 == 0 ? even : odd, i / 2, 4), 28);
  }
};
template <int I>
inline Floats word_floats(const Words& words) {
  return each<Floats>([&](int i) { return Apart(words.part[i]).floats(I); });
}

inline float32x4_t four_scales(const char* scales) {
  uint16x4_t four;
  std::memcpy(&four, scales, sizeof four);
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(four), 16));
}
inline Floats spread(const char* scales) {
  const float32x4_t four = four_scales(scales);
  return each<Floats>([&](int i) { return vdupq_n_f32(four[i]); });
}

// As in packed.inc, but one group of all rows after another: more than that the registers do not hold.
template <int R>
[[gnu::always_inline]] inline void add_block(const char* const* codes, const char* const* scales, const float* factors,
                                             float* y) {
  float32x4_t factor[R];  // of every group
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) factor[r] = vmulq_n_f32(four_scales(scales[r]), factors[r]);
#pragma GCC unroll 4
  for (int group = 0; group < 4; ++group) {
    Apart words[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) words[r] = Apart(vld1q_u8(reinterpret_cast<const uint8_t*>(codes[r]) + 16 * group));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      float32x4_t sums = vld1q_f32(y + 16 * i + 4 * group);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums = vfmaq_n_f32(sums, words[r].floats(i), factor[r][group]);
      vst1q_f32(y + 16 * i + 4 * group, sums);
    }
  }
}

#include "rows.inc"
#include "packed.inc"
#include "rounding.inc"

}  // namespace

constexpr RowKernels kNeonKernels = make_table("neon");

}  // namespace prosparse
#endif
