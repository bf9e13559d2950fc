// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <limits>
#include <string>

#include "triton/detokenize_registry.h"
#include "triton/field_reader.h"
#include "triton/request_reader.h"

namespace slipstream::triton {
namespace {

constexpr const char* kPerfOutputs[] = {"kv_cache_alloc_new_blocks",   "kv_cache_reused_blocks",
                                        "kv_cache_alloc_total_blocks", "arrival_time_ns",
                                        "first_scheduled_time_ns",     "first_token_time_ns",
                                        "last_token_time_ns",          "acceptance_rate",
                                        "total_accepted_draft_tokens", "total_draft_tokens"};
constexpr size_t kNumKvPerfOutputs = 3;  // the first ones

// The greatest value of any row; wrong types are found where rows are read.
int32_t MostOfRows(const RequestData& request, const char* name, int32_t unless_given) {
  int32_t most = std::numeric_limits<int32_t>::min();
  for (int64_t row = 0; row < request.batch(); ++row) {
    const auto value = request.Int32(name, row);
    most = std::max(most, value.ok() ? value->value_or(unless_given) : unless_given);
  }
  return most;
}

void PlanOutputs(const RequestData& request, UniformFieldReader* in, ResponsePlan* plan) {
  const auto wants = [&](const char* flag, const char* output) {
    return in->Bool(flag).value_or(false) && request.Requested(output);
  };
  plan->cum_log_probs = wants("return_log_probs", "cum_log_probs");
  plan->output_log_probs = wants("return_log_probs", "output_log_probs");
  const bool alternatives = MostOfRows(request, "num_logprobs", 0) > 0;
  plan->top_log_probs = alternatives && request.Requested("top_log_probs");
  plan->top_log_prob_ids = alternatives && request.Requested("top_log_prob_ids");
  plan->context_logits = wants("return_context_logits", "context_logits");
  plan->generation_logits = wants("return_generation_logits", "generation_logits");
  plan->num_input_tokens = wants("return_num_input_tokens", "num_input_tokens");
  plan->num_output_tokens = wants("return_num_output_tokens", "num_output_tokens");
  plan->finish_reason = wants("return_finish_reason", "finish_reason");
  plan->stop_reason = wants("return_finish_reason", "stop_reason");
  plan->prompt_tokens = wants("return_usage", "prompt_tokens");
  plan->completion_tokens = wants("return_usage", "completion_tokens");
  plan->cached_tokens = wants("return_usage", "cached_tokens");
  plan->batch_index = plan->batch > 1 && request.Requested("batch_index");
  plan->sequence_index = plan->num_sequences > 1 && request.Requested("sequence_index");
  const bool all_perf = in->Bool("return_perf_metrics").value_or(false);
  const bool kv_perf = all_perf || in->Bool("return_kv_cache_reuse_stats").value_or(false);
  for (size_t i = 0; i < std::size(kPerfOutputs); ++i) {
    const bool asked = i < kNumKvPerfOutputs ? kv_perf : all_perf;
    if (asked && request.Requested(kPerfOutputs[i])) plan->perf.push_back(kPerfOutputs[i]);
  }
}

// Whether text leaves them out: as the request says, else as configured.
void PlanSpecialTokens(const RequestData& request, const ReaderSettings& settings,
                       UniformFieldReader* in, ResponsePlan* plan) {
  const auto given = in->Bool("skip_special_tokens");
  if (given.has_value() && plan->piped && !plan->text) {
    const auto agreed = AgreedSkipSpecialTokens();
    if (agreed.ok() && *agreed == *given) return;
    in->Fail(Status::Unsupported(
        "skip_special_tokens: this model has no tokenizer, so that postprocessing makes the text, "
        "as its parameter of this name says"));
  }
  const auto skip = given.has_value() ? given : settings.skip_special_tokens;
  if (skip.has_value()) {
    plan->skip_special_tokens = *skip;
    return;
  }
  if (!plan->text && request.Find("stop_strings") == nullptr) return;  // no text is made
  const auto agreed = AgreedSkipSpecialTokens();
  if (agreed.ok()) {
    plan->skip_special_tokens = *agreed;
  } else {
    in->Fail(agreed.status());
  }
}

Status CheckOutputs(const RequestData& request, const ResponsePlan& plan) {
  if (plan.pipeline) return Status::Ok();
  if (plan.piped) {
    if (plan.text || plan.ids) return Status::Ok();
    return Status::Unsupported(
        "flow: carries no text, since this model has no tokenizer; the ensemble must map "
        "output_ids and sequence_length too");
  }
  for (const char* name : {"output_ids", "sequence_length"}) {
    if (!request.Requested(name)) {
      return Status::InvalidArgument(std::string(name) +
                                     " tensor must be present in list of output tensors");
    }
  }
  return Status::Ok();
}

// Without decoupling a request gets exactly one response.
Status CheckTransactionPolicy(const ResponsePlan& plan, bool decoupled) {
  if (decoupled) return Status::Ok();
  if (plan.streaming) {
    return Status::InvalidArgument(
        "Streaming is only supported if model is deployed using decoupled mode.");
  }
  if (plan.batch > 1) {
    return Status::InvalidArgument(
        "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction "
        "policy");
  }
  if (plan.num_sequences > 1) {
    return Status::InvalidArgument("num_return_sequences: " + std::to_string(plan.num_sequences) +
                                   " requires decoupled transaction policy, without it the limit "
                                   "is 1");
  }
  return Status::Ok();
}

}  // namespace

StatusOr<ResponsePlan> ReadResponsePlan(const RequestData& request,
                                        const ReaderSettings& settings) {
  UniformFieldReader in(request);
  ResponsePlan plan;
  plan.batched = settings.batched;
  plan.batch = static_cast<int32_t>(request.batch());
  plan.streaming = in.Bool("streaming").value_or(false);
  plan.num_sequences = MostOfRows(request, "num_return_sequences", 1);
  plan.pipeline = settings.pipeline;
  plan.accumulate_text = settings.accumulate_text && plan.streaming;
  plan.piped =
      request.Requested("flow") && request.outputs().size() < settings.num_declared_outputs;
  PlanOutputs(request, &in, &plan);
  plan.context_logits_dtype = settings.context_logits_dtype;
  plan.generation_logits_dtype = settings.generation_logits_dtype;
  const bool asks_text = settings.pipeline || in.Bool("return_text").value_or(false);
  const bool can_text = settings.token_table != nullptr;
  plan.text_output = request.Requested("text_output") && asks_text;
  plan.text = plan.text_output || (plan.piped && can_text);
  plan.ids = request.Requested("output_ids") && request.Requested("sequence_length");
  plan.echo = !plan.streaming &&
              !in.Bool("exclude_input_in_output").value_or(settings.exclude_input_in_output);
  plan.token_table = settings.token_table;
  PlanSpecialTokens(request, settings, &in, &plan);
  if (!in.status().ok()) return in.status();
  if (Status s = CheckOutputs(request, plan); !s.ok()) return s;
  if (Status s = CheckTransactionPolicy(plan, settings.decoupled); !s.ok()) return s;
  return plan;
}

}  // namespace slipstream::triton
