// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// The choice among experts and the sum of what they gave; see row_kernels.h.
//
// A row's weights are summed in lanes by expert, or in the order of its own choice; what experts
// gave is added in that order, too. Neither knows which rows went to the same experts.

#include "kernels/layer_rows.h"

namespace slipstream::kernels {
namespace {

inline bool Better(float a, float b) { return a > b || (a != a && b == b); }

// The best `count` of `size` values, best first.
inline void ChooseBest(const float* values, int64_t size, int64_t count, int64_t* chosen) {
  int64_t found = 0;
  for (int64_t i = 0; i < size; ++i) {
    int64_t place = found;
    while (place > 0 && Better(values[i], values[chosen[place - 1]])) --place;
    if (place == count) continue;
    if (found < count) ++found;
    for (int64_t later = found - 1; later > place; --later) chosen[later] = chosen[later - 1];
    chosen[place] = i;
  }
}

// In place; there is room for a multiple of sixteen.
inline void Softmax(float* values, int64_t size) {
  const int64_t end = (size + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = size; i < end; ++i) values[i] = -INFINITY;
  float most = -INFINITY;
  for (int64_t i = 0; i < size; ++i) {
    if (values[i] > most) most = values[i];
  }
  const Lanes shift = Broadcast(most);
  Lanes sum = Broadcast(0.0f);
  for (int64_t i = 0; i < end; i += kLanes) {
    const Lanes weight = Exp(Sub(Load(values + i), shift));
    Store(values + i, weight);
    sum = Add(sum, weight);
  }
  const Lanes total = Broadcast(Sum(sum));
  for (int64_t i = 0; i < end; i += kLanes) Store(values + i, Div(Load(values + i), total));
}

inline void Score(bool sigmoid, float* values, int64_t size) {
  if (!sigmoid) return Softmax(values, size);
  ForLanes(size, [&](int64_t i, int64_t n) {
    StoreUpTo(values + i, Sigmoid(LoadUpTo(values + i, n)), n);
  });
}

inline float GroupRank(const float* values, int64_t size, bool by_two) {
  int64_t best[2];
  ChooseBest(values, size, by_two ? 2 : 1, best);
  return by_two ? values[best[0]] + values[best[1]] : values[best[0]];
}

// Minus infinity for every expert outside the best groups. ranks: room for one number a group.
inline void LimitToGroups(const RouteArgs& args, float* ranked, float* ranks) {
  const int64_t groups = args.num_groups, size = args.num_experts / groups;
  for (int64_t g = 0; g < groups; ++g) {
    ranks[g] = GroupRank(ranked + g * size, size, args.rank_by_two);
  }
  for (int64_t g = 0; g < groups; ++g) {
    int64_t before = 0;
    for (int64_t other = 0; other < groups; ++other) {
      const bool equal = !Better(ranks[other], ranks[g]) && !Better(ranks[g], ranks[other]);
      before += Better(ranks[other], ranks[g]) || (equal && other < g);
    }
    if (before < args.kept_groups) continue;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) ranked[i] = -INFINITY;
  }
}

inline void RouteRow(const RouteArgs& args, int64_t row, float* scratch) {
  const int64_t count = args.num_experts, top_k = args.top_k;
  const float* logits = args.logits + row * count;
  int64_t* experts = args.experts + row * top_k;
  float* weights = args.weights + row * top_k;
  float* ranked = scratch;
  float* ranks = ranked + count;
  float* scores = ranks + args.num_groups;
  if (args.score_chosen) {
    ChooseBest(logits, count, top_k, experts);
    for (int64_t k = 0; k < top_k; ++k) scores[k] = logits[experts[k]];
    Score(args.sigmoid, scores, top_k);
    for (int64_t k = 0; k < top_k; ++k) weights[k] = scores[k];
  } else {
    for (int64_t i = 0; i < count; ++i) scores[i] = logits[i];
    Score(args.sigmoid, scores, count);
    for (int64_t i = 0; i < count; ++i) {
      ranked[i] = args.correction != nullptr ? scores[i] + args.correction[i] : scores[i];
    }
    if (args.kept_groups < args.num_groups) LimitToGroups(args, ranked, ranks);
    ChooseBest(ranked, count, top_k, experts);
    for (int64_t k = 0; k < top_k; ++k) weights[k] = scores[experts[k]];
  }
  if (args.renormalise) {
    float sum = 0.0f;
    for (int64_t k = 0; k < top_k; ++k) sum += weights[k];
    constexpr float kTiny = 1e-20f;  // as in router.py
    for (int64_t k = 0; k < top_k; ++k) weights[k] /= sum + kTiny;
  }
  for (int64_t k = 0; k < top_k; ++k) weights[k] *= args.scale;
}

void Route(const RouteArgs& args, int64_t row_begin, int64_t row_end, float* scratch) {
  for (int64_t row = row_begin; row < row_end; ++row) RouteRow(args, row, scratch);
}

template <typename T>
void CombineRow(const CombineArgs& args, int64_t row) {
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out) + row * args.size;
  const int64_t* places = args.places + row * args.top_k;
  const float* weights = args.weights != nullptr ? args.weights + row * args.top_k : nullptr;
  ForLanes(args.size, [&](int64_t i, int64_t n) {
    Lanes sum = Broadcast(0.0f);
    for (int64_t k = 0; k < args.top_k; ++k) {
      const Lanes part = LoadUpTo(x + places[k] * args.size + i, n);
      sum = weights != nullptr ? Fma(Broadcast(weights[k]), part, sum) : Add(sum, part);
    }
    StoreUpTo(out + i, sum, n);
  });
}

void Combine(const CombineArgs& args, int64_t row_begin, int64_t row_end) {
  const auto run = args.dtype == Dtype::kFloat32 ? CombineRow<float> : CombineRow<Bfloat16>;
  for (int64_t row = row_begin; row < row_end; ++row) run(args, row);
}

}  // namespace
}  // namespace slipstream::kernels
