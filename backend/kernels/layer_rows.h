// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Products, norms and activations; see row_kernels.h.

#include "kernels/dots.h"

namespace slipstream::kernels {
namespace {

constexpr int64_t kCachedRows = 64;  // of x, which are multiplied by one tile of columns in turn

template <typename T>
void LinearTile(const LinearArgs& args, int64_t row, int64_t rows, int64_t column,
                int64_t columns) {
  constexpr int64_t kMost = kTileRows * kLanes;
  const auto* weight = static_cast<const T*>(args.weight);
  const auto* bias = static_cast<const T*>(args.bias);
  const float* x[kTileRows];
  const T* w[kLanes];
  float sums[kMost], added[kLanes] = {};
  for (int64_t r = 0; r < rows; ++r) x[r] = args.x + (row + r) * args.in;
  for (int64_t c = 0; c < columns; ++c) w[c] = weight + (column + c) * args.in;
  AllDots(x, rows, w, columns, args.in, sums, columns);
  if (bias != nullptr) Store(added, LoadUpTo(bias + column, columns));
  for (int64_t r = 0; r < rows; ++r) {
    T* out = static_cast<T*>(args.out) + (row + r) * args.out_stride + column;
    const Lanes sum = LoadUpTo(sums + r * columns, columns);
    StoreUpTo(out, bias != nullptr ? Add(sum, Load(added)) : sum, columns);
  }
}

template <typename T>
void LinearRows(const LinearArgs& args, int64_t row_begin, int64_t row_end, int64_t column_begin,
                int64_t column_end) {
  for (int64_t block = row_begin; block < row_end; block += kCachedRows) {
    const int64_t end = block + kCachedRows < row_end ? block + kCachedRows : row_end;
    for (int64_t c = column_begin; c < column_end; c += kLanes) {
      const int64_t columns = column_end - c < kLanes ? column_end - c : kLanes;
      for (int64_t r = block; r < end; r += kTileRows) {
        LinearTile<T>(args, r, end - r < kTileRows ? end - r : kTileRows, c, columns);
      }
    }
  }
}

void Linear(const LinearArgs& args, int64_t row_begin, int64_t row_end, int64_t column_begin,
            int64_t column_end) {
  const auto run = args.dtype == Dtype::kFloat32 ? LinearRows<float> : LinearRows<Bfloat16>;
  run(args, row_begin, row_end, column_begin, column_end);
}

void Widen(const Bfloat16* x, float* out, int64_t size) {
  ForLanes(size, [&](int64_t i, int64_t n) { StoreUpTo(out + i, LoadUpTo(x + i, n), n); });
}

inline Lanes Scaled(Lanes x, Dtype dtype, const void* weight, const void* bias, int64_t i,
                    int64_t n) {
  const auto at = [&](const void* values) {
    return dtype == Dtype::kFloat32 ? LoadUpTo(static_cast<const float*>(values) + i, n)
                                    : LoadUpTo(static_cast<const Bfloat16*>(values) + i, n);
  };
  if (weight != nullptr) x = Mul(x, at(weight));
  return bias != nullptr ? Add(x, at(bias)) : x;
}

template <typename T>
void NormRow(const NormArgs& args, int64_t row) {
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
  T* out = static_cast<T*>(args.out) + row * args.size;
  const auto size = static_cast<float>(args.size);
  Lanes sum = Broadcast(0.0f);
  float mean = 0.0f;
  if (args.subtract_mean) {
    ForLanes(args.size, [&](int64_t i, int64_t n) { sum = Add(sum, LoadUpTo(x + i, n)); });
    mean = Sum(sum) / size;
    sum = Broadcast(0.0f);
  }
  const Lanes shift = Broadcast(mean);
  ForLanes(args.size, [&](int64_t i, int64_t n) {
    Lanes centred = Sub(LoadUpTo(x + i, n), shift);
    if (n < kLanes) {  // what is not there is no deviation from the mean
      float values[kLanes];
      Store(values, centred);
      centred = LoadPart(values, n);
    }
    sum = Fma(centred, centred, sum);
  });
  const Lanes factor = Broadcast(1.0f / std::sqrt(Sum(sum) / size + args.eps));
  ForLanes(args.size, [&](int64_t i, int64_t n) {
    const Lanes normal = Mul(Sub(LoadUpTo(x + i, n), shift), factor);
    StoreUpTo(out + i, Scaled(normal, args.weight_dtype, args.weight, args.bias, i, n), n);
  });
}

void Norm(const NormArgs& args, int64_t row_begin, int64_t row_end) {
  const auto run = args.dtype == Dtype::kFloat32 ? NormRow<float> : NormRow<Bfloat16>;
  for (int64_t row = row_begin; row < row_end; ++row) run(args, row);
}

inline Lanes Sigmoid(Lanes x) {
  const Lanes one = Broadcast(1.0f);
  return Div(one, Add(one, Exp(Sub(Broadcast(0.0f), x))));
}

inline Lanes ClampedSwiglu(Lanes gate, Lanes up, float alpha, float limit) {
  const Lanes most = Broadcast(limit);
  gate = Min(most, gate);
  up = Min(most, Max(Broadcast(-limit), up));
  const Lanes activated = Mul(gate, Sigmoid(Mul(gate, Broadcast(alpha))));
  return Mul(activated, Add(up, Broadcast(1.0f)));
}

inline Lanes Activated(Lanes x, Activation activation) {
  const Lanes zero = Broadcast(0.0f), one = Broadcast(1.0f), half = Broadcast(0.5f);
  switch (activation) {
    case Activation::kSilu:
      return Div(x, Add(one, Exp(Sub(zero, x))));
    case Activation::kGelu: {
      float values[kLanes];
      Store(values, x);
      for (float& value : values) value = std::erf(value * 0.70710678118654752f);
      return Mul(Mul(half, x), Add(one, Load(values)));
    }
    case Activation::kGeluTanh: {
      const Lanes cube = Mul(Mul(x, x), x);
      const Lanes inner = Mul(Broadcast(0.79788456080286536f), Fma(Broadcast(0.044715f), cube, x));
      return Mul(Mul(half, x), Add(one, Tanh(inner)));
    }
    case Activation::kRelu:
      return Max(zero, x);
    case Activation::kRelu2: {
      const Lanes positive = Max(zero, x);
      return Mul(positive, positive);
    }
    case Activation::kSigmoid:
      return Sigmoid(x);
    case Activation::kClampedSwiglu:
      break;  // takes both halves
  }
  return x;
}

template <typename T>
void ActivateRow(const ActivationArgs& args, int64_t row) {
  const T* x = static_cast<const T*>(args.x) + row * args.size * (args.gated ? 2 : 1);
  T* out = static_cast<T*>(args.out) + row * args.size;
  ForLanes(args.size, [&](int64_t i, int64_t n) {
    const Lanes gate = LoadUpTo(x + i, n);
    if (args.activation == Activation::kClampedSwiglu) {
      const Lanes up = LoadUpTo(x + args.size + i, n);
      return StoreUpTo(out + i, ClampedSwiglu(gate, up, args.alpha, args.limit), n);
    }
    const Lanes y = Activated(gate, args.activation);
    StoreUpTo(out + i, args.gated ? Mul(y, LoadUpTo(x + args.size + i, n)) : y, n);
  });
}

void Activate(const ActivationArgs& args, int64_t row_begin, int64_t row_end) {
  const auto run = args.dtype == Dtype::kFloat32 ? ActivateRow<float> : ActivateRow<Bfloat16>;
  for (int64_t row = row_begin; row < row_end; ++row) run(args, row);
}

inline Lanes SoftCapped(Lanes x, float cap) {
  return Mul(Broadcast(cap), Tanh(Div(x, Broadcast(cap))));
}

void SoftCap(float* x, int64_t size, float cap) {
  ForLanes(size,
           [&](int64_t i, int64_t n) { StoreUpTo(x + i, SoftCapped(LoadUpTo(x + i, n), cap), n); });
}

}  // namespace
}  // namespace slipstream::kernels
