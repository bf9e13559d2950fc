// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention of some queries of one sequence, for one KV head; see row_kernels.h.
//
// A query's scores are products as in dots.h. Its softmax adds weights in lanes by absolute
// position, its values are added position by position: nothing depends on which other queries are
// computed along, nor on how the cache is cut into blocks.

#include "kernels/layer_rows.h"

namespace slipstream::kernels {
namespace {

template <typename T>
class AttentionRows {
 public:
  AttentionRows(const AttentionArgs& args, const AttentionTask& task, float* scratch)
      : args_(args), task_(task), table_(args.tables + task.sequence * args.table_width) {
    count_ = (task.end - task.begin) * args.queries_per_kv;
    lowest_ = FirstVisible(Position(0));
    highest_ = Position(count_ - 1);
    base_ = lowest_ / kLanes * kLanes;
    width_ = (highest_ - base_) / kLanes * kLanes + kLanes;
    queries_ = scratch;
    values_ = queries_ + count_ * args.dim;
    sums_ = values_ + count_ * args.value_dim;
    weights_ = sums_ + count_;
  }

  void Run() {
    WidenQueries();
    Score();
    for (int64_t row = 0; row < count_; ++row) sums_[row] = Softmax(row);
    for (int64_t row = 0; row < count_; row += kTileRows) AddValues(row);
    for (int64_t row = 0; row < count_; ++row) Finish(row);
  }

 private:
  // Rows are queries, token by token and of each all heads that share the KV head.
  int64_t Token(int64_t row) const { return task_.begin + row / args_.queries_per_kv; }
  int64_t Head(int64_t row) const {
    return task_.kv_head * args_.queries_per_kv + row % args_.queries_per_kv;
  }
  int64_t BatchRow(int64_t row) const { return args_.first_row[task_.sequence] + Token(row); }
  int64_t Position(int64_t row) const { return args_.first_position[task_.sequence] + Token(row); }

  int64_t FirstVisible(int64_t position) const {
    if (args_.mask == MaskKind::kSliding) {
      return position < args_.mask_size ? 0 : position - args_.mask_size + 1;
    }
    return args_.mask == MaskKind::kChunked ? position / args_.mask_size * args_.mask_size : 0;
  }

  const T* Key(int64_t position) const { return Stored(position, 0); }
  const T* Value(int64_t position) const { return Stored(position, args_.planes - 1); }

  const T* Stored(int64_t position, int64_t plane) const {
    const int64_t block = table_[position / args_.per_block];
    const int64_t head = (block * args_.planes + plane) * args_.kv_heads + task_.kv_head;
    const int64_t row = head * args_.per_block + position % args_.per_block;
    return static_cast<const T*>(args_.pool) + row * args_.dim;
  }

  void WidenQueries() {
    for (int64_t row = 0; row < count_; ++row) {
      const T* query = static_cast<const T*>(args_.queries) + BatchRow(row) * args_.query_stride +
                       Head(row) * args_.dim;
      float* out = queries_ + row * args_.dim;
      ForLanes(args_.dim,
               [&](int64_t i, int64_t n) { StoreUpTo(out + i, LoadUpTo(query + i, n), n); });
    }
  }

  void Score() {
    for (int64_t begin = lowest_; begin <= highest_; begin += kLanes) {
      const int64_t columns = highest_ + 1 - begin < kLanes ? highest_ + 1 - begin : kLanes;
      const T* keys[kLanes];
      for (int64_t c = 0; c < columns; ++c) keys[c] = Key(begin + c);
      for (int64_t row = 0; row < count_; row += kTileRows) {
        const int64_t rows = count_ - row < kTileRows ? count_ - row : kTileRows;
        const float* queries[kTileRows];
        for (int64_t r = 0; r < rows; ++r) queries[r] = queries_ + (row + r) * args_.dim;
        float* scores = weights_ + row * width_ + (begin - base_);
        AllDots(queries, rows, keys, columns, args_.dim, scores, width_);
      }
    }
  }

  // Turns a row's scores into weights that are not normalised, zero at what it does not see, and
  // returns their sum.
  float Softmax(int64_t row) {
    const int64_t first = FirstVisible(Position(row)), last = Position(row);
    const int64_t begin = first / kLanes * kLanes, end = last / kLanes * kLanes + kLanes;
    float* weights = weights_ + row * width_ + (begin - base_);
    const Lanes scale = Broadcast(args_.scale);
    float most = args_.sinks != nullptr ? args_.sinks[Head(row)] : -INFINITY;
    for (int64_t i = 0; i < end - begin; i += kLanes) {
      Lanes scores = Mul(Load(weights + i), scale);
      if (args_.soft_cap != 0.0f) scores = SoftCapped(scores, args_.soft_cap);
      Store(weights + i, scores);
    }
    for (int64_t i = begin; i < first; ++i) weights[i - begin] = -INFINITY;
    for (int64_t i = last + 1; i < end; ++i) weights[i - begin] = -INFINITY;
    for (int64_t i = first; i <= last; ++i) {
      if (weights[i - begin] > most) most = weights[i - begin];
    }
    const Lanes shift = Broadcast(most);
    Lanes sum = Broadcast(0.0f);
    for (int64_t i = 0; i < end - begin; i += kLanes) {
      const Lanes weight = Exp(Sub(Load(weights + i), shift));
      Store(weights + i, weight);
      sum = Add(sum, weight);
    }
    float total = Sum(sum);
    if (args_.sinks != nullptr) {
      float sink[kLanes];
      Store(sink, Exp(Sub(Broadcast(args_.sinks[Head(row)]), shift)));
      total += sink[0];
    }
    return total;
  }

  // Positions that all of these rows see are added to all at once; those before and after are not.
  void AddValues(int64_t row) {
    const int64_t rows = count_ - row < kTileRows ? count_ - row : kTileRows;
    const int64_t first = FirstVisible(Position(row + rows - 1)), last = Position(row);
    const int64_t begin = row * args_.value_dim, end = (row + rows) * args_.value_dim;
    for (int64_t i = begin; i < end; ++i) values_[i] = 0.0f;
    if (rows < kTileRows || first > last) {
      for (int64_t r = row; r < row + rows; ++r) {
        AddPositions<1>(r, FirstVisible(Position(r)), Position(r) + 1);
      }
      return;
    }
    for (int64_t r = row; r < row + rows; ++r) AddPositions<1>(r, FirstVisible(Position(r)), first);
    AddPositions<kTileRows>(row, first, last + 1);
    for (int64_t r = row; r < row + rows; ++r) AddPositions<1>(r, last + 1, Position(r) + 1);
  }

  template <int R>
  void AddPositions(int64_t row, int64_t begin, int64_t end) {
    constexpr int kAtOnce = 4;
    if (begin >= end) return;
    int64_t d = 0;
    for (; d + kAtOnce * kLanes <= args_.value_dim; d += kAtOnce * kLanes) {
      AddSlices<R, kAtOnce>(row, begin, end, d, kLanes);
    }
    for (; d < args_.value_dim; d += kLanes) {
      AddSlices<R, 1>(row, begin, end, d,
                      args_.value_dim - d < kLanes ? args_.value_dim - d : kLanes);
    }
  }

  // Entries from d on: D times sixteen, or once `part`.
  template <int R, int D>
  void AddSlices(int64_t row, int64_t begin, int64_t end, int64_t d, int64_t part) {
    Lanes sums[R][D];
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < D; ++i) {
        sums[r][i] = LoadUpTo(values_ + (row + r) * args_.value_dim + d + i * kLanes, part);
      }
    }
    for (int64_t position = begin; position < end;) {
      const int64_t in_block = args_.per_block - position % args_.per_block;
      const int64_t run = end - position < in_block ? end - position : in_block;
      const T* values = Value(position) + d;
      const float* weights = weights_ + row * width_ + (position - base_);
      for (int64_t p = 0; p < run; ++p, values += args_.dim) {
        Lanes slices[D];
#pragma GCC unroll 4
        for (int i = 0; i < D; ++i) slices[i] = LoadUpTo(values + i * kLanes, part);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const Lanes weight = Broadcast(weights[r * width_ + p]);
#pragma GCC unroll 4
          for (int i = 0; i < D; ++i) sums[r][i] = Fma(weight, slices[i], sums[r][i]);
        }
      }
      position += run;
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < D; ++i) {
        StoreUpTo(values_ + (row + r) * args_.value_dim + d + i * kLanes, sums[r][i], part);
      }
    }
  }

  void Finish(int64_t row) {
    const int64_t heads = args_.kv_heads * args_.queries_per_kv;
    T* out = static_cast<T*>(args_.out) + (BatchRow(row) * heads + Head(row)) * args_.value_dim;
    const float* values = values_ + row * args_.value_dim;
    const Lanes sum = Broadcast(sums_[row]);
    ForLanes(args_.value_dim, [&](int64_t i, int64_t n) {
      StoreUpTo(out + i, Div(LoadUpTo(values + i, n), sum), n);
    });
  }

  const AttentionArgs& args_;
  const AttentionTask& task_;
  const int32_t* table_;
  int64_t count_, lowest_, highest_, base_, width_;
  float *queries_, *values_, *sums_, *weights_;
};

void Attend(const AttentionArgs& args, const AttentionTask& task, float* scratch) {
  if (args.dtype == Dtype::kFloat32) {
    AttentionRows<float>(args, task, scratch).Run();
  } else {
    AttentionRows<Bfloat16>(args, task, scratch).Run();
  }
}

}  // namespace
}  // namespace slipstream::kernels
