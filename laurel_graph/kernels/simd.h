// Vectors of one instruction set. Included by path.cc alone, which is compiled once for each set; all of it lives in a
// namespace of that set, so that no code of one can be linked into another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define LAUREL_INLINE inline __attribute__((always_inline))
#define LAUREL_LAMBDA __attribute__((always_inline))

namespace laurel::LAUREL_PATH {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int kWidth = 4;
constexpr int kRegisters = 32;
#else
constexpr int kWidth = 4;
constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));
typedef float Quad __attribute__((vector_size(16)));

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

LAUREL_INLINE Floats splat(float value) { return value - Floats{}; }  // 0 + value would not keep -0

template <typename To, typename From>
LAUREL_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <typename V>
LAUREL_INLINE V load_bits(const void* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

// ---- conversions of 16-bit floats -------------------------------------------------------------------------------

LAUREL_INLINE Floats widen(Halves bits, Brain) {
  return bit_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

// Round to nearest even; a NaN stays a (quiet) NaN.
LAUREL_INLINE Halves narrow(Floats value, Brain) {
  Words bits = bit_cast<Words>(value);
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words nan = (bits >> 16) | 0x40;
  Words is_nan = (Words)((bits & 0x7fffffff) > 0x7f800000);
  return __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), Halves);
}

#if defined(__AVX512F__)
LAUREL_INLINE Floats widen(Halves bits, Half) { return (Floats)_mm512_cvtph_ps((__m256i)bits); }
LAUREL_INLINE Halves narrow(Floats value, Half) {
  return (Halves)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__AVX2__)
LAUREL_INLINE Floats widen(Halves bits, Half) { return (Floats)_mm256_cvtph_ps((__m128i)bits); }
LAUREL_INLINE Halves narrow(Floats value, Half) {
  return (Halves)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__ARM_NEON)
LAUREL_INLINE Floats widen(Halves bits, Half) { return (Floats)vcvt_f32_f16((float16x4_t)bits); }
LAUREL_INLINE Halves narrow(Floats value, Half) { return (Halves)vcvt_f16_f32((float32x4_t)value); }
#else
LAUREL_INLINE Words select(Words mask, Words yes, Words no) { return (mask & yes) | (~mask & no); }

// The exponent is moved by a multiplication, which is exact and treats subnormals right; Inf and NaN are mended after.
LAUREL_INLINE Floats widen(Halves halves, Half) {
  Words bits = __builtin_convertvector(halves, Words);
  Words magnitude = (bits & 0x7fff) << 13;
  Words scaled = bit_cast<Words>(bit_cast<Floats>(magnitude) * splat(0x1p112f));
  Words special = (Words)(magnitude >= (0x7c00u << 13));
  return bit_cast<Floats>(select(special, magnitude | 0x7f800000, scaled) | ((bits & 0x8000) << 16));
}

// Normal halves: round the mantissa in place, to nearest even. Subnormal ones: adding 0.5 leaves the rounded value in
// the low bits of the sum.
LAUREL_INLINE Halves narrow(Floats value, Half) {
  Words bits = bit_cast<Words>(value);
  Words sign = (bits >> 16) & 0x8000;
  Words magnitude = bits & 0x7fffffff;
  Words normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  Words subnormal = bit_cast<Words>(bit_cast<Floats>(magnitude) + splat(0.5f)) - bit_cast<Words>(splat(0.5f));
  Words result = select((Words)(magnitude < (113u << 23)), subnormal, normal);
  result = select((Words)(magnitude >= 0x477ff000), Words{} + 0x7c00, result);
  result = select((Words)(magnitude > 0x7f800000), Words{} + 0x7e00, result);
  return __builtin_convertvector(result | sign, Halves);
}
#endif

// ---- bytes ------------------------------------------------------------------------------------------------------

typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));

#if defined(__AVX512F__)
LAUREL_INLINE Ints widen_bytes(const uint8_t* from) { return (Ints)_mm512_cvtepu8_epi32(load_bits<__m128i>(from)); }
LAUREL_INLINE Ints widen_bytes(const int8_t* from) { return (Ints)_mm512_cvtepi8_epi32(load_bits<__m128i>(from)); }
LAUREL_INLINE __m128i narrow_ints(Ints value) { return _mm512_cvtepi32_epi8((__m512i)value); }
#elif defined(__AVX2__)
LAUREL_INLINE __m128i load_eight(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
LAUREL_INLINE Ints widen_bytes(const uint8_t* from) { return (Ints)_mm256_cvtepu8_epi32(load_eight(from)); }
LAUREL_INLINE Ints widen_bytes(const int8_t* from) { return (Ints)_mm256_cvtepi8_epi32(load_eight(from)); }
// The low byte of each: gathered within each half, then side by side.
LAUREL_INLINE uint64_t narrow_ints(Ints value) {
  const __m256i low_bytes = _mm256_set1_epi32(0x0c080400);
  const __m256i halves = _mm256_shuffle_epi8((__m256i)value, low_bytes);
  const __m256i joined = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
  return static_cast<uint64_t>(_mm256_extract_epi64(joined, 0));
}
#else
template <typename B>
LAUREL_INLINE Ints widen_bytes(const B* from) {
  typedef B Bytes __attribute__((vector_size(kWidth)));
  return __builtin_convertvector(load_bits<Bytes>(from), Ints);
}
LAUREL_INLINE auto narrow_ints(Ints value) {
  typedef uint8_t Bytes __attribute__((vector_size(kWidth)));
  return __builtin_convertvector(value, Bytes);
}
#endif

// kWidth bytes as float32.
template <typename B>
LAUREL_INLINE Floats load_bytes(const B* from) {
  return __builtin_convertvector(widen_bytes(from), Floats);
}

// Keeps the low byte of each.
template <typename B>
LAUREL_INLINE void store_bytes(B* to, Ints value) {
  const auto bytes = narrow_ints(value);
  static_assert(sizeof bytes == kWidth, "one byte for each lane");
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

// To the nearest, halves to even; |value| < 2^22. The sum has no bits behind the point left.
LAUREL_INLINE Ints round_to_ints(Floats value) {
  const float shift = 0x1.8p23f;
  return bit_cast<Ints>(value + shift) - bit_cast<Ints>(splat(shift));
}

// ---- loads and stores -------------------------------------------------------------------------------------------

LAUREL_INLINE Floats load(const float* from) { return load_bits<Floats>(from); }
template <typename T>
LAUREL_INLINE Floats load(const T* from) {
  return widen(load_bits<Halves>(from), T());
}

LAUREL_INLINE void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof value); }
template <typename T>
LAUREL_INLINE void store(T* to, Floats value) {
  Halves bits = narrow(value, T());
  __builtin_memcpy(to, &bits, sizeof bits);
}

// The first `count` elements, 0 <= count < kWidth; the others are zero.
template <typename T>
LAUREL_INLINE Floats load_part(const T* from, int count) {
  T part[kWidth] = {};
  for (int i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
}

#if defined(__AVX512F__)
LAUREL_INLINE __mmask16 part_mask(int count) { return (__mmask16)((1u << count) - 1); }
LAUREL_INLINE Floats load_part(const float* from, int count) {
  return (Floats)_mm512_maskz_loadu_ps(part_mask(count), from);
}
#elif defined(__AVX2__)
LAUREL_INLINE Floats load_part(const float* from, int count) {
  alignas(32) static constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return (Floats)_mm256_maskload_ps(from, load_bits<__m256i>(kMask + 8 - count));
}
#endif

template <typename T>
LAUREL_INLINE void store_part(T* to, Floats value, int count) {
  T part[kWidth];
  store(part, value);
  for (int i = 0; i < kWidth && i != count; ++i) to[i] = part[i];
}

#if defined(__AVX512F__)
LAUREL_INLINE void store_part(float* to, Floats value, int count) {
  _mm512_mask_storeu_ps(to, part_mask(count), (__m512)value);
}
#elif defined(__AVX2__)
// By powers of two: masked stores take many steps on some processors.
LAUREL_INLINE void store_part(float* to, Floats value, int count) {
  __m128 left = _mm256_castps256_ps128((__m256)value);
  if (count & 4) {
    _mm_storeu_ps(to, left);
    left = _mm256_extractf128_ps((__m256)value, 1);
    to += 4;
  }
  if (count & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(to), left);
    left = _mm_movehl_ps(left, left);
    to += 2;
  }
  if (count & 1) _mm_store_ss(to, left);
}
#endif

// The first `count` lanes, 0 <= count < kWidth; the others become zero.
LAUREL_INLINE Floats first_lanes(Floats value, int count) {
  float part[kWidth];
  store(part, value);
  return load_part(part, count);
}

// ---- sums across lanes ------------------------------------------------------------------------------------------

LAUREL_INLINE Quad quarter_sum(Floats value) {
  Quad part[kWidth / 4];
  __builtin_memcpy(part, &value, sizeof value);
  Quad sum = part[0];
  for (int i = 1; i < kWidth / 4; ++i) sum += part[i];
  return sum;
}

LAUREL_INLINE float sum_lanes(Floats value) {
  Quad sum = quarter_sum(value);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

#if defined(__clang__) || __GNUC__ >= 12
#define LAUREL_SHUFFLE(p, q, a, b, c, d) __builtin_shufflevector(p, q, a, b, c, d)
#else
#define LAUREL_SHUFFLE(p, q, a, b, c, d) __builtin_shuffle(p, q, (Lanes){a, b, c, d})
typedef int32_t Lanes __attribute__((vector_size(16)));
#endif

// {sum of a, sum of b, sum of c, sum of d}
LAUREL_INLINE Quad sum_lanes(Floats a, Floats b, Floats c, Floats d) {
  Quad p = quarter_sum(a), q = quarter_sum(b), r = quarter_sum(c), s = quarter_sum(d);
  Quad pq = LAUREL_SHUFFLE(p, q, 0, 4, 1, 5) + LAUREL_SHUFFLE(p, q, 2, 6, 3, 7);
  Quad rs = LAUREL_SHUFFLE(r, s, 0, 4, 1, 5) + LAUREL_SHUFFLE(r, s, 2, 6, 3, 7);
  return LAUREL_SHUFFLE(pq, rs, 0, 1, 4, 5) + LAUREL_SHUFFLE(pq, rs, 2, 3, 6, 7);
}

}  // namespace laurel::LAUREL_PATH
