// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace slipstream::kernels {

// The parts of a decoder on a CPU, with one promise: **a row's result is a function of that row**.
// How many rows there are, where among them it is, how work is cut into tasks and which thread does
// them changes no bit. It holds by construction: every sum has one order, given by the row's own
// sizes and positions, and what is computed for several rows at once are separate chains of the
// same operations.

struct Bfloat16 {
  uint16_t bits;
};

enum class Dtype : uint8_t { kFloat32, kBfloat16 };

// kClampedSwiglu (GPT-OSS), always gated: gate * sigmoid(alpha * gate) * (up + 1), with gate at
// most `limit` and up within -limit and limit.
enum class Activation : uint8_t {
  kSilu,
  kGelu,
  kGeluTanh,
  kRelu,
  kRelu2,
  kSigmoid,
  kClampedSwiglu
};

// out[r, c] = sum over k of x[r, k] * weight[c, k], in float32, plus bias[c]. Strides are in
// elements; rows of the weight are contiguous.
struct LinearArgs {
  const float* x;      // [rows, in], contiguous
  const void* weight;  // [columns, in]
  const void* bias;    // [columns] or null
  void* out;           // [rows, columns], rows `out_stride` apart
  int64_t rows, in, columns, out_stride;
  Dtype dtype;  // of weight, bias and out
};

// Root mean square norm, or with `subtract_mean` layer norm; then times weight plus bias, each null
// if there is none.
struct NormArgs {
  const void* x;  // [rows, size], rows `x_stride` apart
  const void* weight;
  const void* bias;
  void* out;  // [rows, size], contiguous
  int64_t size, x_stride;
  float eps;
  bool subtract_mean;
  Dtype dtype;         // of x and out
  Dtype weight_dtype;  // of weight and bias
};

// act(x), and if `gated` times the second half of the row.
struct ActivationArgs {
  const void* x;  // [rows, size or 2 * size], contiguous
  void* out;      // [rows, size], contiguous; may be x unless gated
  int64_t size;
  Activation activation;
  bool gated;
  Dtype dtype;
  float alpha = 0.0f, limit = 0.0f;  // of kClampedSwiglu
};

// Which experts a row goes to, best first, and with what weight: slipstream/layers/router.py says
// what the choices mean. Of equals the one with the lower number is better; what is not a number is
// better than any that is, as torch has it.
struct RouteArgs {
  const float* logits;      // [rows, num_experts], contiguous
  const float* correction;  // [num_experts] or null: joins the scores that choose
  int64_t* experts;         // [rows, top_k]
  float* weights;           // [rows, top_k]
  int64_t num_experts, top_k, num_groups, kept_groups;
  bool sigmoid;       // else softmax
  bool score_chosen;  // choose by logits, score what was chosen
  bool rank_by_two;   // a group's rank is the sum of its two best, else its best
  bool renormalise;
  float scale;
};

// Floats that a row of RouteArgs needs while it runs.
int64_t RouteScratch(const RouteArgs& args);

// out[r] = sum over k of weights[r, k] * x[places[r, k]], in the order of k, in float32.
struct CombineArgs {
  const void* x;          // [pairs, size], contiguous
  const int64_t* places;  // [rows, top_k] rows of x
  const float* weights;   // [rows, top_k], or null where all are 1
  void* out;              // [rows, size], contiguous
  int64_t size, top_k;
  Dtype dtype;
};

enum class MaskKind : uint8_t { kFull, kSliding, kChunked };

// Attention over a paged cache. A query at position p sees its own sequence from what the mask
// says up to p; see slipstream/attention/interface.py. With one plane the values are the leading
// `value_dim` entries of the keys (multi-head latent attention); else value_dim is dim.
struct AttentionArgs {
  const void* queries;            // [tokens, heads, dim], tokens `query_stride` apart
  const void* pool;               // [blocks, planes, kv_heads, per_block, dim], keys before values
  const int32_t* tables;          // [sequences, table_width] blocks
  const int32_t* first_position;  // [sequences]
  const int32_t* first_row;       // [sequences] rows of the batch
  const float* sinks;             // [heads] or null
  void* out;                      // [tokens, heads * value_dim]
  int64_t query_stride, table_width, planes, kv_heads, queries_per_kv, dim, value_dim, per_block;
  MaskKind mask;
  int64_t mask_size;
  float scale, soft_cap;  // 0: no cap
  Dtype dtype;
};

// Queries `begin` to `end` of a sequence's rows in the batch, for one KV head.
struct AttentionTask {
  int64_t sequence, begin, end, kv_head;
};

// Floats that AttentionTask needs while it runs, for so many queries that see up to `positions`.
int64_t AttentionScratch(const AttentionArgs& args, int64_t queries, int64_t positions);

// The kernels for one set of instructions.
struct RowKernels {
  const char* name;
  void (*linear)(const LinearArgs&, int64_t row_begin, int64_t row_end, int64_t column_begin,
                 int64_t column_end);
  void (*widen)(const Bfloat16* x, float* out, int64_t size);
  void (*norm)(const NormArgs&, int64_t row_begin, int64_t row_end);
  void (*activate)(const ActivationArgs&, int64_t row_begin, int64_t row_end);
  void (*soft_cap)(float* x, int64_t size, float cap);  // x = cap * tanh(x / cap)
  void (*route)(const RouteArgs&, int64_t row_begin, int64_t row_end, float* scratch);
  void (*combine)(const CombineArgs&, int64_t row_begin, int64_t row_end);
  void (*attend)(const AttentionArgs&, const AttentionTask&, float* scratch);
};

extern const RowKernels kGenericKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2Kernels;
extern const RowKernels kAvx512Kernels;
#endif

// The kernels by name ("generic", "avx2", "avx512"), or the best for this processor if it is empty;
// null where the processor lacks the instructions or the name means nothing.
const RowKernels* FindRowKernels(const char* name);

}  // namespace slipstream::kernels
