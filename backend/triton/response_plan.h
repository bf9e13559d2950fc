// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "executor/token_table.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

// What the responses to one request of role `llm` hold. An optional output is wanted when the
// client asked for it by its flag and it is among the requested outputs.
struct ResponsePlan {
  bool batched = false;       // shapes begin with the batch dimension, 1
  bool streaming = false;     // responses are deltas
  int32_t batch = 1;          // rows; each gets responses of its own
  int32_t num_sequences = 1;  // of a row; the most that any has
  // The request names `flow` among its outputs: it comes from an ensemble whose `detokenize` step
  // acknowledges responses, so that every response must have what that step reads.
  bool piped = false;
  // The request came through role `pipeline`: text_output is the first output, in the shape that
  // `detokenize` gives it, and there are no ids.
  bool pipeline = false;

  // Streamed by a pipeline that is told to: the text of a response is all text so far.
  bool accumulate_text = false;

  bool text = false;         // the executor settles text
  bool ids = true;           // output_ids and sequence_length; an ensemble need not ask for them
  bool text_output = false;  // text as an output of its own, besides what `flow` carries
  bool cum_log_probs = false;
  bool output_log_probs = false;
  bool top_log_probs = false;
  bool top_log_prob_ids = false;
  bool context_logits = false;
  bool generation_logits = false;
  bool num_input_tokens = false;
  bool num_output_tokens = false;
  bool finish_reason = false;
  bool stop_reason = false;
  bool prompt_tokens = false;
  bool completion_tokens = false;
  bool cached_tokens = false;
  bool batch_index = false;
  bool sequence_index = false;
  std::vector<const char*> perf;  // names of the wanted perf outputs, in the order of the table
  TRITONSERVER_DataType context_logits_dtype = TRITONSERVER_TYPE_FP32;
  TRITONSERVER_DataType generation_logits_dtype = TRITONSERVER_TYPE_FP32;

  uint64_t flow = 0;  // handle, when piped

  // Only when the output repeats the prompt (not streaming, not excluded): the prompt of each row,
  // and what is needed to decode it together with the generated tokens.
  bool echo = false;
  std::vector<std::vector<int32_t>> prompts;
  std::shared_ptr<const TokenTable> token_table;
  bool skip_special_tokens = true;
};

}  // namespace slipstream::triton
