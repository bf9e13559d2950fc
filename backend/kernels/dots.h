// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/lanes.h"

namespace slipstream::kernels {
namespace {

// What is computed at once: enough chains of additions to hide their latency, in registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 4, kTileColumns = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 2, kTileColumns = 2;
#else
constexpr int kTileRows = 1, kTileColumns = 2;
#endif

// out[r * out_stride + c] = x[r] . w[c]. Every product of rows adds its lanes in the same order,
// whatever R and C are: that is the promise of row_kernels.h.
template <int R, int C, typename W>
inline void Dots(const float* const* x, const W* const* w, int64_t size, float* out,
                 int64_t out_stride) {
  Lanes sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = Broadcast(0.0f);
  }
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    Lanes columns[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) columns[c] = Load(w[c] + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Lanes row = Load(x[r] + i);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[r][c] = Fma(row, columns[c], sums[r][c]);
    }
  }
  if (i < size) {
    for (int c = 0; c < C; ++c) {
      const Lanes column = LoadPart(w[c] + i, size - i);
      for (int r = 0; r < R; ++r) {
        sums[r][c] = Fma(LoadPart(x[r] + i, size - i), column, sums[r][c]);
      }
    }
  }
#if defined(__AVX512F__)
  if constexpr (R == 4 && C == 4) return StoreSums(sums, out, out_stride);
#endif
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) out[r * out_stride + c] = Sum(sums[r][c]);
  }
}

// As many columns as there are, for R rows.
template <int R, typename W>
inline void DotsOfRows(const float* const* x, const W* const* w, int64_t columns, int64_t size,
                       float* out, int64_t out_stride) {
  int64_t c = 0;
  for (; c + kTileColumns <= columns; c += kTileColumns) {
    Dots<R, kTileColumns>(x, w + c, size, out + c, out_stride);
  }
  for (; c < columns; ++c) Dots<R, 1>(x, w + c, size, out + c, out_stride);
}

template <typename W>
inline void AllDots(const float* const* x, int64_t rows, const W* const* w, int64_t columns,
                    int64_t size, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    DotsOfRows<kTileRows>(x + r, w, columns, size, out + r * out_stride, out_stride);
  }
  for (; r < rows; ++r) {
    DotsOfRows<1>(x + r, w, columns, size, out + r * out_stride, out_stride);
  }
}

}  // namespace
}  // namespace slipstream::kernels
