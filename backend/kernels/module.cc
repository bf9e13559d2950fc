// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// slipstream._kernels: addresses and sizes in, nothing checked. slipstream/layers/rows.py,
// slipstream/layers/expert_rows.py and slipstream/attention/paged_rows.py check, and are the only
// callers.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/row_kernels.h"
#include "kernels/task_pool.h"

namespace py = pybind11;

namespace slipstream::kernels {
namespace {

constexpr int64_t kSmall = 1 << 16;  // multiplications that are not worth a second thread
constexpr int64_t kTaskRows = 256, kTaskColumns = 64;

template <typename T = void>
T* At(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

int64_t Pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// The kernels with the threads and the memory that they use. For one thread at a time.
class Rows {
 public:
  Rows(int threads, const std::string& instructions)
      : kernels_(FindRowKernels(instructions.c_str())), pool_(threads), scratch_(pool_.threads()) {
    if (kernels_ == nullptr) {
      throw py::value_error("instructions: this processor cannot run \"" + instructions + "\"");
    }
  }

  std::string instructions() const { return kernels_->name; }

  void Linear(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out, int64_t rows,
              int64_t in, int64_t columns, int64_t out_stride, Dtype dtype) {
    const LinearArgs args = {Wide(x, rows * in, dtype),
                             At(weight),
                             At(bias),
                             At(out),
                             rows,
                             in,
                             columns,
                             out_stride,
                             dtype};
    if (pool_.threads() == 1 || rows * in * columns < kSmall) {
      return kernels_->linear(args, 0, rows, 0, columns);
    }
    const int64_t across = Pieces(columns, kTaskColumns);
    pool_.Run(across * Pieces(rows, kTaskRows), [&](int64_t i, int) {
      const int64_t row = i / across * kTaskRows, column = i % across * kTaskColumns;
      kernels_->linear(args, row, std::min(row + kTaskRows, rows), column,
                       std::min(column + kTaskColumns, columns));
    });
  }

  // Rows of x that are sorted by expert, each times its expert's matrix, plus its bias. segments:
  // int64 [count, 3] expert, first row and end; weights: [experts, columns, in], experts
  // `weight_stride` elements apart; biases: [experts, columns] or null; out: [rows, columns].
  void ExpertLinear(uintptr_t x, uintptr_t weights, int64_t weight_stride, uintptr_t biases,
                    uintptr_t out, uintptr_t segments, int64_t count, int64_t in, int64_t columns,
                    Dtype dtype) {
    const auto* bounds = At<const int64_t>(segments);
    const int64_t rows = bounds[count * 3 - 1];
    const int64_t width = dtype == Dtype::kFloat32 ? sizeof(float) : sizeof(Bfloat16);
    const float* wide = Wide(x, rows * in, dtype);
    pieces_.clear();
    for (const int64_t* s = bounds; s < bounds + count * 3; s += 3) {
      for (int64_t row = s[1]; row < s[2]; row += kTaskRows) {
        for (int64_t column = 0; column < columns; column += kTaskColumns) {
          pieces_.push_back({s[0], row, std::min(row + kTaskRows, s[2]), column});
        }
      }
    }
    const auto run = [&](int64_t i, int) {
      const Piece& piece = pieces_[i];
      const LinearArgs args = {wide,
                               At(weights + piece.expert * weight_stride * width),
                               biases == 0 ? nullptr : At(biases + piece.expert * columns * width),
                               At(out),
                               rows,
                               in,
                               columns,
                               columns,
                               dtype};
      kernels_->linear(args, piece.begin, piece.end, piece.column,
                       std::min(piece.column + kTaskColumns, columns));
    };
    const auto pieces = static_cast<int64_t>(pieces_.size());
    if (rows * in * columns >= kSmall) return pool_.Run(pieces, run);
    for (int64_t i = 0; i < pieces; ++i) run(i, 0);
  }

  void Route(const RouteArgs& args, int64_t rows) {
    const int64_t piece = std::max<int64_t>(1, kSmall / (args.num_experts * 16));
    pool_.Run(Pieces(rows, piece), [&](int64_t i, int thread) {
      float* scratch = Scratch(thread, RouteScratch(args));
      kernels_->route(args, i * piece, std::min((i + 1) * piece, rows), scratch);
    });
  }

  void Combine(const CombineArgs& args, int64_t rows) {
    Split(rows, args.size * args.top_k,
          [&](int64_t begin, int64_t end) { kernels_->combine(args, begin, end); });
  }

  void Norm(const NormArgs& args, int64_t rows) {
    Split(rows, args.size, [&](int64_t begin, int64_t end) { kernels_->norm(args, begin, end); });
  }

  void Activate(const ActivationArgs& args, int64_t rows) {
    Split(rows, args.size * 16,
          [&](int64_t begin, int64_t end) { kernels_->activate(args, begin, end); });
  }

  void SoftCap(uintptr_t x, int64_t size, float cap) {
    kernels_->soft_cap(At<float>(x), size, cap);
  }

  // tasks: int32 [count, 3] sequence, first and end of queries; spans: int64 [count] positions that
  // a task's queries see together.
  void Attend(const AttentionArgs& args, uintptr_t tasks, uintptr_t spans, int64_t count) {
    const auto* pieces = At<const int32_t>(tasks);
    const auto* seen = At<const int64_t>(spans);
    pool_.Run(count * args.kv_heads, [&](int64_t i, int thread) {
      const int32_t* piece = pieces + i / args.kv_heads * 3;
      const AttentionTask task = {piece[0], piece[1], piece[2], i % args.kv_heads};
      const int64_t need = AttentionScratch(args, task.end - task.begin, seen[i / args.kv_heads]);
      kernels_->attend(args, task, Scratch(thread, need));
    });
  }

 private:
  // Rows of one expert, and their columns from `column` on.
  struct Piece {
    int64_t expert, begin, end, column;
  };

  // x in float32, until the next call.
  const float* Wide(uintptr_t x, int64_t size, Dtype dtype) {
    if (dtype == Dtype::kFloat32) return At<const float>(x);
    wide_.resize(std::max<size_t>(wide_.size(), size));
    kernels_->widen(At<const Bfloat16>(x), wide_.data(), size);
    return wide_.data();
  }

  float* Scratch(int thread, size_t size) {
    std::vector<float>& scratch = scratch_[thread];
    if (scratch.size() < size) scratch.resize(size);
    return scratch.data();
  }

  template <typename Function>
  void Split(int64_t rows, int64_t work, const Function& run) {
    const int64_t piece = std::max<int64_t>(1, kSmall / std::max<int64_t>(work, 1));
    pool_.Run(Pieces(rows, piece),
              [&](int64_t i, int) { run(i * piece, std::min((i + 1) * piece, rows)); });
  }

  const RowKernels* kernels_;
  TaskPool pool_;
  std::vector<float> wide_;
  std::vector<Piece> pieces_;
  std::vector<std::vector<float>> scratch_;  // by thread
};

// cos and sin of position * frequency, one number at a time by the C library.
void Angles(uintptr_t positions, uintptr_t frequencies, uintptr_t cos, uintptr_t sin, int64_t rows,
            int64_t size) {
  for (int64_t row = 0; row < rows; ++row) {
    const auto position = static_cast<float>(At<const int64_t>(positions)[row]);
    for (int64_t i = 0; i < size; ++i) {
      const float angle = position * At<const float>(frequencies)[i];
      At<float>(cos)[row * size + i] = std::cos(angle);
      At<float>(sin)[row * size + i] = std::sin(angle);
    }
  }
}

// In place, one number at a time by the C library.
void Log1p(uintptr_t x, int64_t size) {
  for (int64_t i = 0; i < size; ++i) At<float>(x)[i] = std::log1p(At<float>(x)[i]);
}

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Kernels on a CPU, each of whose rows depends on nothing but itself.";
  py::enum_<Dtype>(m, "Dtype")
      .value("FLOAT32", Dtype::kFloat32)
      .value("BFLOAT16", Dtype::kBfloat16);
  py::enum_<Activation>(m, "Activation")
      .value("SILU", Activation::kSilu)
      .value("GELU", Activation::kGelu)
      .value("GELU_TANH", Activation::kGeluTanh)
      .value("RELU", Activation::kRelu)
      .value("RELU2", Activation::kRelu2)
      .value("SIGMOID", Activation::kSigmoid)
      .value("CLAMPED_SWIGLU", Activation::kClampedSwiglu);
  py::enum_<MaskKind>(m, "MaskKind")
      .value("FULL", MaskKind::kFull)
      .value("SLIDING", MaskKind::kSliding)
      .value("CHUNKED", MaskKind::kChunked);
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("angles", &Angles, unlocked);
  m.def("log1p", &Log1p, unlocked);
  py::class_<Rows>(m, "Rows")
      .def(py::init<int, const std::string&>(), py::arg("threads"), py::arg("instructions") = "")
      .def_property_readonly("instructions", &Rows::instructions)
      .def("linear", &Rows::Linear, unlocked)
      .def(
          "norm",
          [](Rows& rows, uintptr_t x, int64_t x_stride, uintptr_t weight, uintptr_t bias,
             uintptr_t out, int64_t count, int64_t size, float eps, bool subtract_mean, Dtype dtype,
             Dtype weight_dtype) {
            rows.Norm({At(x), At(weight), At(bias), At(out), size, x_stride, eps, subtract_mean,
                       dtype, weight_dtype},
                      count);
          },
          unlocked)
      .def(
          "activate",
          [](Rows& rows, uintptr_t x, uintptr_t out, int64_t count, int64_t size,
             Activation activation, bool gated, Dtype dtype, float alpha, float limit) {
            rows.Activate({At(x), At(out), size, activation, gated, dtype, alpha, limit}, count);
          },
          unlocked)
      .def("soft_cap", &Rows::SoftCap, unlocked)
      .def("expert_linear", &Rows::ExpertLinear, unlocked)
      .def(
          "route",
          [](Rows& rows, uintptr_t logits, uintptr_t correction, uintptr_t experts,
             uintptr_t weights, int64_t count, int64_t num_experts, int64_t top_k,
             int64_t num_groups, int64_t kept_groups, bool sigmoid, bool score_chosen,
             bool rank_by_two, bool renormalise, float scale) {
            rows.Route({At<const float>(logits), At<const float>(correction), At<int64_t>(experts),
                        At<float>(weights), num_experts, top_k, num_groups, kept_groups, sigmoid,
                        score_chosen, rank_by_two, renormalise, scale},
                       count);
          },
          unlocked)
      .def(
          "combine",
          [](Rows& rows, uintptr_t x, uintptr_t places, uintptr_t weights, uintptr_t out,
             int64_t count, int64_t size, int64_t top_k, Dtype dtype) {
            rows.Combine({At(x), At<const int64_t>(places), At<const float>(weights), At(out), size,
                          top_k, dtype},
                         count);
          },
          unlocked)
      .def(
          "attend",
          [](Rows& rows, uintptr_t queries, int64_t query_stride, uintptr_t pool, uintptr_t tables,
             int64_t table_width, uintptr_t first_position, uintptr_t first_row, uintptr_t sinks,
             uintptr_t out, int64_t planes, int64_t kv_heads, int64_t queries_per_kv, int64_t dim,
             int64_t value_dim, int64_t per_block, MaskKind mask, int64_t mask_size, float scale,
             float soft_cap, Dtype dtype, uintptr_t tasks, uintptr_t spans, int64_t count) {
            rows.Attend({At(queries),
                         At(pool),
                         At<const int32_t>(tables),
                         At<const int32_t>(first_position),
                         At<const int32_t>(first_row),
                         At<const float>(sinks),
                         At(out),
                         query_stride,
                         table_width,
                         planes,
                         kv_heads,
                         queries_per_kv,
                         dim,
                         value_dim,
                         per_block,
                         mask,
                         mask_size,
                         scale,
                         soft_cap,
                         dtype},
                        tasks, spans, count);
          },
          unlocked);
}

}  // namespace
}  // namespace slipstream::kernels
