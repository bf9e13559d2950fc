// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sixteen floats at a time, on the instructions that the including file is compiled for.
//
// Everything is in an unnamed namespace: the same names mean other instructions in another file,
// and the linker must not merge them.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/row_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace slipstream::kernels {
namespace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};

inline Lanes Broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Lanes Load(const Bfloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline void Store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes Add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes Sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes Mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes Div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes Fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of Max and Min the second operand is the result where either is NaN.
inline Lanes Max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes Min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes Round(Lanes a) { return {_mm512_roundscale_ps(a.v, 0)}; }
// 2^n of whole numbers from -126 to 127.
inline Lanes PowerOfTwo(Lanes n) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)}; }
// a, and 0 where x is below the limit.
inline Lanes ZeroBelow(Lanes a, Lanes x, float limit) {
  const __mmask16 kept = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ);
  return {_mm512_maskz_mov_ps(kept, a.v)};
}
// Lane l plus lane l + 8, and so on with halves: the one order in which lanes are ever added.
inline float Sum(Lanes a) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}

// out[r * stride + c] = Sum(sums[r][c]), by the very additions of Sum, of sixteen at once.
inline void StoreSums(const Lanes (&sums)[4][4], float* out, int64_t stride) {
  const Lanes* all = sums[0];
  __m512 halves[8], quarters[4], pairs[2];
  for (int i = 0; i < 8; ++i) {  // of sums i and i + 8
    const __m512 a = all[i].v, b = all[i + 8].v;
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int i = 0; i < 4; ++i) {  // of i, i + 8, i + 4 and i + 12
    const __m512 a = halves[i], b = halves[i + 4];
    quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  for (int i = 0; i < 2; ++i) {  // in each quarter of i and i + 2
    const __m512 a = quarters[i], b = quarters[i + 2];
    pairs[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  __m512 rows = _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88),
                              _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
  rows = _mm512_shuffle_ps(rows, rows, 0xd8);  // columns 0, 2, 1, 3 in their order
  _mm_storeu_ps(out, _mm512_castps512_ps128(rows));
  _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(rows, 2));
  _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(rows, 1));
  _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(rows, 3));
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 low, high;
};

inline Lanes Broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256 Widened(const Bfloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Lanes Load(const Bfloat16* p) { return {Widened(p), Widened(p + 8)}; }
inline void Store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline Lanes Add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes Sub(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes Mul(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes Div(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Lanes Fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes Max(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Lanes Min(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes Round(Lanes a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
}
inline __m256 PowerOfTwo(__m256 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Lanes PowerOfTwo(Lanes n) { return {PowerOfTwo(n.low), PowerOfTwo(n.high)}; }
inline Lanes ZeroBelow(Lanes a, Lanes x, float limit) {
  const __m256 least = _mm256_set1_ps(limit);
  return {_mm256_and_ps(a.low, _mm256_cmp_ps(x.low, least, _CMP_NLT_UQ)),
          _mm256_and_ps(a.high, _mm256_cmp_ps(x.high, least, _CMP_NLT_UQ))};
}
inline float Sum(Lanes a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}

#else

struct Lanes {
  float v[kLanes];
};

template <typename Function>
inline Lanes Each(Function function) {
  Lanes result;
  for (int l = 0; l < kLanes; ++l) result.v[l] = function(l);
  return result;
}
inline float Widened(Bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}
inline Lanes Broadcast(float x) {
  return Each([&](int) { return x; });
}
inline Lanes Load(const float* p) {
  return Each([&](int l) { return p[l]; });
}
inline Lanes Load(const Bfloat16* p) {
  return Each([&](int l) { return Widened(p[l]); });
}
inline void Store(float* p, Lanes a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline Lanes Add(Lanes a, Lanes b) {
  return Each([&](int l) { return a.v[l] + b.v[l]; });
}
inline Lanes Sub(Lanes a, Lanes b) {
  return Each([&](int l) { return a.v[l] - b.v[l]; });
}
inline Lanes Mul(Lanes a, Lanes b) {
  return Each([&](int l) { return a.v[l] * b.v[l]; });
}
inline Lanes Div(Lanes a, Lanes b) {
  return Each([&](int l) { return a.v[l] / b.v[l]; });
}
// Two roundings, everywhere: this file is compiled without contraction.
inline Lanes Fma(Lanes a, Lanes b, Lanes c) {
  return Each([&](int l) { return a.v[l] * b.v[l] + c.v[l]; });
}
inline Lanes Max(Lanes a, Lanes b) {
  return Each([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
}
inline Lanes Min(Lanes a, Lanes b) {
  return Each([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; });
}
inline Lanes Round(Lanes a) {
  return Each([&](int l) { return std::nearbyint(a.v[l]); });
}
inline Lanes PowerOfTwo(Lanes n) {
  return Each([&](int l) { return std::ldexp(1.0f, static_cast<int>(n.v[l])); });
}
inline Lanes ZeroBelow(Lanes a, Lanes x, float limit) {
  return Each([&](int l) { return x.v[l] < limit ? 0.0f : a.v[l]; });
}
inline float Sum(Lanes a) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) a.v[l] += a.v[l + half];
  }
  return a.v[0];
}

#endif

// The first `count` values, below sixteen, then zeros.
template <typename T>
inline Lanes LoadPart(const T* p, int64_t count) {
  T values[kLanes] = {};
  std::memcpy(values, p, static_cast<size_t>(count) * sizeof(T));
  return Load(values);
}

inline Bfloat16 Narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline void StorePart(float* p, Lanes a, int64_t count) {
  float values[kLanes];
  Store(values, a);
  std::memcpy(p, values, static_cast<size_t>(count) * sizeof(float));
}
inline void StorePart(Bfloat16* p, Lanes a, int64_t count) {
  float values[kLanes];
  Store(values, a);
  for (int64_t l = 0; l < count; ++l) p[l] = Narrowed(values[l]);
}
inline void Store(Bfloat16* p, Lanes a) {
#if defined(__AVX512F__)
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  high = _mm512_mask_mov_epi32(high, nan, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, high));
#else
  StorePart(p, a, kLanes);
#endif
}

// Calls `lanes(offset, count)` for every sixteen of `size` values, the last time for what is left.
template <typename Function>
inline void ForLanes(int64_t size, Function lanes) {
  for (int64_t i = 0; i < size; i += kLanes) lanes(i, size - i < kLanes ? size - i : kLanes);
}
template <typename T>
inline Lanes LoadUpTo(const T* p, int64_t count) {
  return count == kLanes ? Load(p) : LoadPart(p, count);
}
template <typename T>
inline void StoreUpTo(T* p, Lanes a, int64_t count) {
  count == kLanes ? Store(p, a) : StorePart(p, a, count);
}

// e^x to 2 units in the last place; 0 below -87 (S. Moshier, Cephes, expf).
inline Lanes Exp(Lanes x) {
  const Lanes bounded = Min(Broadcast(88.0f), Max(Broadcast(-87.0f), x));
  const Lanes n = Round(Mul(bounded, Broadcast(1.44269504088896341f)));
  Lanes r = Fma(n, Broadcast(-0.693359375f), bounded);
  r = Fma(n, Broadcast(2.12194440e-4f), r);
  Lanes y = Broadcast(1.9875691500e-4f);
  constexpr float kCoefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                     1.6666665459e-1f, 5.0000001201e-1f};
  for (const float c : kCoefficients) {
    y = Fma(y, r, Broadcast(c));
  }
  y = Add(Fma(y, Mul(r, r), r), Broadcast(1.0f));
  return ZeroBelow(Mul(y, PowerOfTwo(n)), x, -87.0f);
}

// 1 - 2 / (e^2x + 1)
inline Lanes Tanh(Lanes x) {
  const Lanes one = Broadcast(1.0f);
  return Sub(one, Div(Broadcast(2.0f), Add(Exp(Add(x, x)), one)));
}

}  // namespace
}  // namespace slipstream::kernels
