// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/kv_group.h"

namespace slipstream {

// One step of the model, as the scheduler decided it and as it travels to the workers. The
// vectors are sent as they lie in memory; worker_link/step_frame.h describes the bytes around them.
//
// A worker applies a plan in this order: retired slots, admitted slots, block copies, forward.
// Plans are applied strictly in step_id order. Within a layer, the KV of every sequence of the step
// is written before any attention of the step reads: a sequence may attend to blocks which another
// sequence fills in the same step. Only in a step whose chunks are all of one token does no slot
// hold a block that another one writes to, so that each may attend once it has written its own KV.
//
// Each KV group has its own pool of blocks, and each slot a block table per group, all of the same
// length: entry i holds positions from i * tokens_per_block on. In a windowed group a slot holds
// only blocks that it may still read. It gives up a block when all of it lies below what
// - the position after its last chunk sees: from the step after that chunk's on;
// - the first position of a chunk sees: from the step of that chunk on.
// Other slots may be given the block in the first step that does without it. The worker is not
// told: it reads what its masks let it see, and stale entries stay in its tables.

inline constexpr int32_t kNoBlock = -1;  // windowed groups: an entry below all that the chunk sees
inline constexpr int32_t kTokenFromSlot = -1;  // token id: "this slot's last sampled token"

enum SeqFlags : uint32_t {
  kSeqSample = 1,         // sample one token after the last position of this chunk
  kSeqContextLogits = 2,  // return the logits of every position of this chunk
};

enum AdmitFlags : uint32_t {
  kAdmitGenerationLogits = 1,  // return the logits that each token was sampled from
  kAdmitHistory = 2,           // the aux history is given and must be kept up to date
};

struct BlockCopy {
  int32_t src;
  int32_t dst;
  int32_t num_tokens;  // leading positions of the block to copy
  int32_t group = 0;
};
static_assert(sizeof(BlockCopy) == 16);

// A slot's sampling state, sent once. Offsets and lengths count int32 elements of StepPlan::aux.
struct AdmitRecord {
  uint64_t seed;  // already mixed with the sequence index
  uint32_t slot;
  uint32_t flags;
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  float top_p_decay;
  float top_p_min;
  int32_t top_p_reset_id;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int32_t prompt_ignore_length;
  int32_t min_tokens;
  int32_t num_logprobs;     // -1 none, 0 chosen only, k chosen and top k
  int32_t prompt_len;       // positions below it are prompt; the generated index counts from here
  uint32_t history_offset;  // all tokens known at admission: prompt, then generated so far
  uint32_t history_len;
  uint32_t end_ids_offset;  // masked while fewer than min_tokens were generated
  uint32_t end_ids_len;
  uint32_t bad_words_offset;  // n, then n times: length, tokens
  uint32_t bad_words_len;     // elements in all
  uint32_t bias_offset;       // pairs: token id, float32 bits
  uint32_t bias_len;          // elements in all (two a pair)
};
static_assert(sizeof(AdmitRecord) == 104);

struct StepPlan {
  uint64_t step_id = 0;
  uint32_t num_groups = 1;
  // One entry per scheduled sequence; a slot occurs at most once.
  std::vector<uint32_t> slot;
  std::vector<uint32_t> num_tokens;      // >= 1
  std::vector<uint32_t> first_position;  // = tokens of this slot with KV already computed
  std::vector<uint32_t> num_new_blocks;  // appended to each table of the slot before the forward
  std::vector<uint32_t> flags;           // SeqFlags
  std::vector<int32_t> token_ids;        // sum(num_tokens); may be kTokenFromSlot
  std::vector<int32_t> new_block_ids;    // [num_groups, sum(num_new_blocks)]; may be kNoBlock
  std::vector<BlockCopy> copies;  // applied in order; a later copy may overwrite an earlier source
  std::vector<AdmitRecord> admitted;  // resets the slot: empty block table, fresh sampling state
  std::vector<uint32_t> retired;      // slots that no later plan names until admitted again
  std::vector<int32_t> aux;

  size_t num_seqs() const { return slot.size(); }
  bool empty() const { return slot.empty(); }
  void Clear();
};

enum SeqStatus : uint32_t {
  kSeqOk = 0,
  kSeqNonFinite = 1,  // NaN or infinite logits: the sequence ends with an error
};

// What a worker returns for a plan: entry i belongs to the plan's sequence i.
struct StepResult {
  uint64_t step_id = 0;
  uint64_t start_ns = 0;  // CLOCK_MONOTONIC at the worker, around the forward
  uint64_t end_ns = 0;
  std::vector<uint32_t> slot;
  std::vector<uint32_t> status;           // SeqStatus
  std::vector<uint32_t> num_tokens;       // accepted tokens: 0 without kSeqSample
  std::vector<uint32_t> logprob_width;    // 0 = none; else 1 + k entries per accepted token
  std::vector<uint32_t> context_rows;     // rows of context logits
  std::vector<uint32_t> generation_rows;  // rows of generation logits
  std::vector<int32_t> tokens;            // sum(num_tokens)
  std::vector<int32_t> logprob_ids;       // sum(num_tokens * logprob_width)
  std::vector<float> logprob_values;      // likewise; natural log, of the raw (unpenalized) logits
  std::vector<float> logits;  // per sequence: context rows, then generation rows; [rows, vocab]
};

// What a worker says of itself once its model is loaded.
struct WorkerInfo {
  int32_t vocab_size = 0;
  int32_t max_seq_len = 0;
  int32_t tokens_per_block = 0;
  // What it serves: as configured, or what suits its device where that was left open.
  int32_t max_num_seqs = 64;
  int32_t max_num_tokens = 2048;
  std::vector<KvGroup> kv_groups;  // at least one; a full one comes first, and there is no second
  std::vector<int32_t> end_ids;    // the checkpoint's own
  int32_t pad_id = -1;
  bool wants_history = false;  // send every sequence's tokens at admission
  std::string token_table;     // msgpack; empty = no text
  std::string model_name;
  std::string device;
  int64_t weight_bytes = 0;
  std::vector<int32_t> expert_layers;  // numbers of the layers with experts; empty = none
  int32_t num_experts = 0;             // of each of them
};

}  // namespace slipstream
