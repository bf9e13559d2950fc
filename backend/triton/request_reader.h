// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "executor/request.h"
#include "executor/status.h"
#include "executor/token_table.h"
#include "triton/model_config.h"
#include "triton/prompt_tokenizer.h"
#include "triton/request_data.h"
#include "triton/response_plan.h"

namespace slipstream::triton {

// What reading a request for an executor needs to know of the model that the client asked, which is
// the `llm` itself or a `pipeline` before it, and of the `llm`.
struct ReaderSettings {
  // Of the model asked.
  bool batched = true;
  bool decoupled = true;
  bool pipeline = false;
  bool accumulate_text = false;  // see ResponsePlan
  size_t num_declared_outputs = 0;
  TRITONSERVER_DataType context_logits_dtype = TRITONSERVER_TYPE_FP32;
  TRITONSERVER_DataType generation_logits_dtype = TRITONSERVER_TYPE_FP32;

  // Of the `llm`.
  bool exclude_input_in_output = false;
  std::optional<bool> skip_special_tokens;  // unset: as models of role `detokenize`
  int32_t vocab_size = 0;
  std::vector<int32_t> end_ids;                   // the checkpoint's own
  std::shared_ptr<const TokenTable> token_table;  // null: no text

  // The first part, from a configuration.
  static StatusOr<ReaderSettings> Of(const ModelConfig& config);
};

struct LlmRequest {
  // The request only stops others: all that carry its id. Nothing else of it was read.
  bool stop = false;
  // Becomes true when a stop request names it before all its rows are submitted; may be null.
  std::shared_ptr<const std::atomic<bool>> stopped;
  ResponsePlan plan;
  std::vector<RequestSpec> rows;  // one per row of the batch; contexts are not set
};

// Where a request stands among others, before the rest of it is read: of its rows the best
// priority, within 0 .. 9, the latest deadline and all sequences.
struct Standing {
  int32_t priority = 0;
  TimeNs deadline = kNever;
  int64_t sequences = 1;
};
// max_sequences: of a row; one that asks for more will be refused, and counts as one.
StatusOr<Standing> ReadStanding(const RequestData& request, TimeNs now, int32_t max_sequences);

// `now`: CLOCK_MONOTONIC, for deadlines. Ranges of sampling parameters and lengths are the
// Executor's to check; this reads, maps and refuses.
StatusOr<LlmRequest> ReadLlmRequest(const RequestData& request, const ReaderSettings& settings,
                                    TimeNs now);

// The same for a pipeline: `request` holds what goes to role `llm` as it is, `tokenized` what the
// tokenizer made of the rest, one per row.
StatusOr<LlmRequest> ReadPipelineRequest(const RequestData& request,
                                         std::vector<TokenizedRow> tokenized,
                                         const ReaderSettings& settings, TimeNs now);

// The part of it that shapes the responses. What holds for the request as a whole must be the same
// in all rows.
StatusOr<ResponsePlan> ReadResponsePlan(const RequestData& request, const ReaderSettings& settings);

// The number that stands for a salt given as text; 0 for the empty one. Keyed per process.
uint64_t HashCacheSalt(const std::string& salt);

}  // namespace slipstream::triton
