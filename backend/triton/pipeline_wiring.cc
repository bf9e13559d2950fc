// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/pipeline_wiring.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

namespace slipstream::triton {
namespace {

constexpr Role kTokenize = Role::kTokenize;
constexpr Role kLlm = Role::kLlm;
constexpr Role kPipeline = Role::kPipeline;

// What the tokenizer makes, and of which input.
constexpr std::pair<const char*, const char*> kMade[] = {
    {"input_ids", "text_input"},
    {"input_lengths", "text_input"},
    {"bad_words_list", "bad_words"},
    {"embedding_bias", "embedding_bias_words"}};

const char* ClientName(std::string_view tensor) {
  for (const Wire& wire : PipelineWires()) {
    if (tensor == wire.tensor) return wire.name;
  }
  for (const auto& [made, name] : kMade) {
    if (tensor == made) return name;
  }
  return nullptr;
}

}  // namespace

const std::vector<Wire>& PipelineWires() {
  static const std::vector<Wire> wires = {
      {"text_input", kTokenize, "QUERY"},
      {"decoder_text_input", kTokenize, "DECODER_QUERY"},
      {"max_tokens", kLlm, "request_output_len"},
      {"num_return_sequences", kLlm, "num_return_sequences"},
      {"bad_words", kTokenize, "BAD_WORDS_DICT"},
      {"stop_words", kLlm, "stop_strings"},
      {"exclude_input_in_output", kLlm, "exclude_input_in_output"},
      {"end_id", kLlm, "end_id"},
      {"pad_id", kLlm, "pad_id"},
      {"top_k", kLlm, "runtime_top_k"},
      {"top_p", kLlm, "runtime_top_p"},
      {"temperature", kLlm, "temperature"},
      {"length_penalty", kLlm, "len_penalty"},
      {"early_stopping", kLlm, "early_stopping"},
      {"prompt_ignore_length", kLlm, "prompt_ignore_length"},
      {"repetition_penalty", kLlm, "repetition_penalty"},
      {"min_tokens", kLlm, "min_tokens"},
      {"presence_penalty", kLlm, "presence_penalty"},
      {"frequency_penalty", kLlm, "frequency_penalty"},
      {"seed", kLlm, "seed"},
      {"return_log_probs", kLlm, "return_log_probs"},
      {"return_context_logits", kLlm, "return_context_logits"},
      {"return_generation_logits", kLlm, "return_generation_logits"},
      {"return_perf_metrics", kLlm, "return_perf_metrics"},
      {"beam_width", kLlm, "beam_width"},
      {"stream", kLlm, "streaming"},
      {"prompt_embedding_table", kLlm, "prompt_embedding_table"},
      {"prompt_table_extra_id", kTokenize, "PROMPT_TABLE_EXTRA_ID"},
      {"prompt_vocab_size", kLlm, "prompt_vocab_size"},
      {"embedding_bias_words", kTokenize, "EMBEDDING_BIAS_WORDS"},
      {"embedding_bias_weights", kTokenize, "EMBEDDING_BIAS_WEIGHTS"},
      {"lora_task_id", kLlm, "lora_task_id"},
      {"lora_weights", kLlm, "lora_weights"},
      {"lora_config", kLlm, "lora_config"},
      {"guided_decoding_guide_type", kLlm, "guided_decoding_guide_type"},
      {"guided_decoding_guide", kLlm, "guided_decoding_guide"},
      {"return_num_input_tokens", kLlm, "return_num_input_tokens"},
      {"return_num_output_tokens", kLlm, "return_num_output_tokens"},
      // Ours.
      {"messages", kTokenize, "MESSAGES"},
      {"chat_options", kTokenize, "CHAT_OPTIONS"},
      {"min_length", kLlm, "min_length"},
      {"no_repeat_ngram_size", kLlm, "no_repeat_ngram_size"},
      {"include_stop_in_output", kLlm, "include_stop_in_output"},
      {"num_logprobs", kLlm, "num_logprobs"},
      {"min_p", kLlm, "min_p"},
      {"cache_salt", kLlm, "cache_salt"},
      {"priority", kLlm, "priority"},
      {"timeout_ms", kLlm, "timeout_ms"},
      {"skip_special_tokens", kLlm, "skip_special_tokens"},
      {"return_finish_reason", kLlm, "return_finish_reason"},
      {"return_usage", kLlm, "return_usage"},
      // Of `tensorrt_llm_bls`.
      {"image_input", kPipeline, "image_input"},
      {"image_bytes_input", kTokenize, "IMAGE_BYTES"},
      {"image_url_input", kTokenize, "IMAGE_URL"},
      {"video_bytes_input", kTokenize, "VIDEO_BYTES"},
      {"num_draft_tokens", kPipeline, "num_draft_tokens"},
      {"use_draft_logits", kPipeline, "use_draft_logits"},
  };
  return wires;
}

StatusOr<StepRequests> SplitRequest(RequestData&& request, bool batched) {
  RequestData::Fields llm = std::move(request).Release();
  RequestData::Fields tokenize;
  RequestData::Fields own;
  std::vector<std::unique_ptr<Tensor>> inputs;
  inputs.swap(llm.inputs);
  for (auto& tensor : inputs) {
    const auto& wires = PipelineWires();
    const auto wire = std::find_if(wires.begin(), wires.end(),
                                   [&](const Wire& w) { return tensor->name == w.name; });
    if (wire == wires.end()) {
      return Status::InvalidArgument("input '" + tensor->name +
                                     "': role pipeline has no such input");
    }
    tensor->name = wire->tensor;
    auto& inner = wire->step == kTokenize ? tokenize : llm;
    auto& part = wire->step == kPipeline ? own : inner;
    part.inputs.push_back(std::move(tensor));
  }
  auto text = RequestData::Create(std::move(tokenize), batched);
  if (!text.ok()) return text.status();
  auto rest = RequestData::Create(std::move(llm), batched);
  if (!rest.ok()) return rest.status();
  auto kept = RequestData::Create(std::move(own), batched);
  if (!kept.ok()) return kept.status();
  return StepRequests{std::move(text).value(), std::move(rest).value(), std::move(kept).value()};
}

Status NamedForClient(const Status& status) {
  const std::string& message = status.message();
  const size_t end = message.find(':');
  if (status.ok() || end == std::string::npos) return status;
  const std::string tensor = message.substr(0, end);
  const char* name = ClientName(tensor);
  if (name == nullptr || tensor == name) return status;
  return Status(status.code(), tensor + " (" + name + ")" + message.substr(end));
}

}  // namespace slipstream::triton
