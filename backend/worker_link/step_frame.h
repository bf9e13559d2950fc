// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// The bytes between the Executor and a worker: the one description of the layout. The Python side
// mirrors it in slipstream/worker/frames.py; a test compares every offset. Little-endian.
//
// A stream socketpair (or TCP) carries frames: a FrameHeader, then `payload_bytes` of payload.
// In STEP and RESULT frames the payload is the fixed header below, then the arrays it counts, in
// the order of its comment, each array starting at a multiple of 8 bytes from the payload's start
// (zero padding between). Other frames hold one msgpack map.
//
// Conversation:
//   executor -> worker  CONFIG  {slipstream version, frame version, model settings …}
//   worker -> executor  PROGRESS {fraction, what} …, then HELLO {…WorkerInfo} or ERROR; in HELLO,
//     kv_groups is a list of {kind, window, num_blocks, bytes_per_block}; expert_layers lists the
//     layers with num_experts experts each, and is empty for a model without
//   executor -> worker  STEP …           worker -> executor  RESULT, one per STEP, in order
//   worker -> executor  STATS {expert_tokens}, after HELLO, about once a second while steps run:
//     u64[expert_layers, num_experts] as binary, the tokens that each expert computed since the
//     STATS before; what a worker did not tell before its end is lost
//   worker -> executor  ERROR {message, traceback} and exit, at any time
//   executor -> worker  SHUTDOWN {}: the worker exits 0
// End of file on either side ends the other.

namespace slipstream {

inline constexpr uint32_t kFrameMagic = 0x4d525453;  // "STRM"
inline constexpr uint16_t kFrameVersion = 3;
inline constexpr uint64_t kMaxFramePayload = uint64_t{1} << 33;

enum class FrameType : uint16_t {
  kConfig = 1,    // msgpack
  kProgress = 2,  // msgpack
  kHello = 3,     // msgpack
  kError = 4,     // msgpack
  kShutdown = 5,  // msgpack, empty map
  kStep = 6,
  kResult = 7,
  kRequest = 8,  // msgpack; tokenizer processes only
  kReply = 9,    // msgpack; tokenizer processes only
  kStats = 10,   // msgpack
};

struct FrameHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t type;
  uint64_t payload_bytes;
};
static_assert(sizeof(FrameHeader) == 16);

// Arrays after it: slot, num_tokens, first_position, num_new_blocks, flags: u32[num_seqs] each;
// token_ids i32[num_tokens]; new_block_ids i32[num_new_blocks], group by group: all groups add the
// same number of blocks to a sequence's tables, so each has num_new_blocks / num_groups ids in the
// order of the sequences; copies BlockCopy[num_copies];
// admitted AdmitRecord[num_admitted]; retired u32[num_retired]; aux i32[num_aux].
struct StepHeader {
  uint64_t step_id;
  uint32_t num_seqs;
  uint32_t num_tokens;
  uint32_t num_new_blocks;
  uint32_t num_copies;
  uint32_t num_admitted;
  uint32_t num_retired;
  uint32_t num_aux;
  uint32_t num_groups;  // of the KV; >= 1
};
static_assert(sizeof(StepHeader) == 40);

// Arrays after it: slot, status, num_tokens, logprob_width, context_rows, generation_rows:
// u32[num_seqs] each; tokens i32[num_tokens]; logprob_ids i32[num_logprobs]; logprob_values
// f32[num_logprobs]; logits f32[num_logits].
struct ResultHeader {
  uint64_t step_id;
  uint64_t start_ns;
  uint64_t end_ns;
  uint64_t num_logits;
  uint32_t num_seqs;
  uint32_t num_tokens;
  uint32_t num_logprobs;
  uint32_t reserved;
};
static_assert(sizeof(ResultHeader) == 48);

inline constexpr size_t AlignFrameArray(size_t offset) { return (offset + 7) & ~size_t{7}; }

}  // namespace slipstream
