// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/response_builder.h"

#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "executor/detokenizer.h"
#include "triton/flow_registry.h"

namespace slipstream::triton {
namespace {

template <typename T>
void Append(std::vector<T>&& from, std::vector<T>* into) {
  if (into->empty()) {
    *into = std::move(from);
  } else {
    into->insert(into->end(), from.begin(), from.end());
  }
}

// Collects outputs; every shape gets the batch dimension if the model has one.
class Outputs {
 public:
  explicit Outputs(bool batched) : batched_(batched) {}

  template <typename T>
  void Add(const char* name, std::vector<int64_t> shape, const T* values, size_t count) {
    outputs_.push_back(OutputTensor::Of(name, Shape(std::move(shape)), values, count));
  }
  template <typename T>
  void AddScalar(const char* name, T value) {
    Add(name, {1}, &value, 1);
  }
  void AddString(const char* name, const std::string& text) {
    outputs_.push_back(OutputTensor::OfStrings(name, Shape({1}), {text}));
  }
  void AddIds(const std::vector<int32_t>& ids) {
    const auto length = static_cast<int32_t>(ids.size());
    Add("output_ids", {1, int64_t{length}}, ids.data(), ids.size());
    AddScalar("sequence_length", length);
  }
  // A flat list without the batch dimension, as role `detokenize` answers.
  void AddText(const std::string& text) {
    outputs_.push_back(OutputTensor::OfStrings("text_output", {1}, {text}));
  }
  // One tensor for all that role `detokenize` needs: in an ensemble every tensor of a response
  // costs microseconds.
  void AddFlow(const ResponsePlan& plan, const std::string& text) {
    std::vector<std::string> parts = {FlowKey(plan.flow)};
    if (plan.text) parts.push_back(text);
    outputs_.push_back(
        OutputTensor::OfStrings("flow", Shape({static_cast<int64_t>(parts.size())}), parts));
  }
  void AddLogits(const char* name, std::vector<int64_t> shape, TRITONSERVER_DataType dtype,
                 const std::vector<float>& logits);
  std::vector<OutputTensor> Take() { return std::move(outputs_); }

 private:
  std::vector<int64_t> Shape(std::vector<int64_t> shape) const {
    if (batched_) shape.insert(shape.begin(), 1);
    return shape;
  }

  const bool batched_;
  std::vector<OutputTensor> outputs_;
};

void Outputs::AddLogits(const char* name, std::vector<int64_t> shape, TRITONSERVER_DataType dtype,
                        const std::vector<float>& logits) {
  if (dtype == TRITONSERVER_TYPE_FP32) {
    Add(name, std::move(shape), logits.data(), logits.size());
    return;
  }
  std::string data(logits.size() * sizeof(uint16_t), '\0');
  for (size_t i = 0; i < logits.size(); ++i) {
    const uint16_t half = FloatToHalf(logits[i]);
    std::memcpy(&data[i * sizeof(half)], &half, sizeof(half));
  }
  outputs_.push_back({name, TRITONSERVER_TYPE_FP16, Shape(std::move(shape)), std::move(data)});
}

// The text of prompt and generated tokens together. A stop string may have cut the generated text
// short of its tokens: as much is cut here.
std::string EchoText(const ResponsePlan& plan, const std::vector<int32_t>& all, size_t prompt_size,
                     const std::string& generated_text) {
  const std::string whole =
      Detokenizer::Decode(plan.token_table, all.data(), all.size(), plan.skip_special_tokens);
  const std::string generated =
      Detokenizer::Decode(plan.token_table, all.data() + prompt_size, all.size() - prompt_size,
                          plan.skip_special_tokens);
  const size_t cut = generated.size() - std::min(generated.size(), generated_text.size());
  return whole.substr(0, whole.size() - std::min(whole.size(), cut));
}

void AddLogprobs(const ResponsePlan& plan, const Event& event, Outputs* out) {
  if (plan.cum_log_probs) out->AddScalar("cum_log_probs", event.cum_logprob);
  const auto width = static_cast<size_t>(event.logprobs.width);
  const size_t tokens = width == 0 ? 0 : event.logprobs.values.size() / width;
  const auto count = static_cast<int64_t>(tokens);
  if (plan.output_log_probs) {
    std::vector<float> chosen(tokens);
    for (size_t t = 0; t < tokens; ++t) chosen[t] = event.logprobs.values[t * width];
    out->Add("output_log_probs", {1, count}, chosen.data(), tokens);
  }
}

void AddTopLogprobs(const ResponsePlan& plan, const Event& event, Outputs* out) {
  const auto width = static_cast<size_t>(event.logprobs.width);
  const size_t tokens = width == 0 ? 0 : event.logprobs.values.size() / width;
  const size_t k = width == 0 ? 0 : width - 1;
  std::vector<float> values;
  std::vector<int32_t> ids;
  for (size_t t = 0; t < tokens; ++t) {
    const auto first = static_cast<std::ptrdiff_t>(t * width + 1);
    const auto last = static_cast<std::ptrdiff_t>((t + 1) * width);
    values.insert(values.end(), event.logprobs.values.begin() + first,
                  event.logprobs.values.begin() + last);
    ids.insert(ids.end(), event.logprobs.ids.begin() + first, event.logprobs.ids.begin() + last);
  }
  const std::vector<int64_t> shape = {static_cast<int64_t>(tokens), static_cast<int64_t>(k)};
  if (plan.top_log_probs) out->Add("top_log_probs", shape, values.data(), values.size());
  if (plan.top_log_prob_ids) out->Add("top_log_prob_ids", shape, ids.data(), ids.size());
}

void AddLogits(const ResponsePlan& plan, const Event& event, Outputs* out) {
  if (plan.context_logits && !event.context_logits.empty()) {
    const int64_t rows = event.usage.prompt_tokens;
    const auto vocab =
        static_cast<int64_t>(event.context_logits.size()) / std::max<int64_t>(rows, 1);
    out->AddLogits("context_logits", {rows, vocab}, plan.context_logits_dtype,
                   event.context_logits);
  }
  if (plan.generation_logits) {
    const auto rows = static_cast<int64_t>(event.tokens.size());
    const auto vocab =
        static_cast<int64_t>(event.generation_logits.size()) / std::max<int64_t>(rows, 1);
    out->AddLogits("generation_logits", {1, rows, vocab}, plan.generation_logits_dtype,
                   event.generation_logits);
  }
}

void AddPerf(const ResponsePlan& plan, const Event& event, Outputs* out) {
  const PerfMetrics& perf = event.perf;
  for (const char* name : plan.perf) {
    const std::string_view key = name;
    if (key == "kv_cache_alloc_new_blocks") out->AddScalar(name, perf.kv_alloc_new_blocks);
    if (key == "kv_cache_reused_blocks") out->AddScalar(name, perf.kv_reused_blocks);
    if (key == "kv_cache_alloc_total_blocks") out->AddScalar(name, perf.kv_alloc_total_blocks);
    if (key == "arrival_time_ns") out->AddScalar(name, perf.arrival_ns);
    if (key == "first_scheduled_time_ns") out->AddScalar(name, perf.first_scheduled_ns);
    if (key == "first_token_time_ns") out->AddScalar(name, perf.first_token_ns);
    if (key == "last_token_time_ns") out->AddScalar(name, perf.last_token_ns);
    if (key == "acceptance_rate") out->AddScalar(name, 0.0f);  // nothing is drafted
    if (key == "total_accepted_draft_tokens") out->AddScalar(name, int32_t{0});
    if (key == "total_draft_tokens") out->AddScalar(name, int32_t{0});
  }
}

void AddEnding(const ResponsePlan& plan, const Event& event, Outputs* out) {
  if (event.reason != FinishReason::kNone) {
    if (plan.finish_reason) out->AddString("finish_reason", FinishReasonName(event.reason));
    if (plan.stop_reason) out->AddString("stop_reason", event.stop_reason);
  }
  if (plan.prompt_tokens) out->AddScalar("prompt_tokens", event.usage.prompt_tokens);
  if (plan.completion_tokens) out->AddScalar("completion_tokens", event.usage.completion_tokens);
  if (plan.cached_tokens) out->AddScalar("cached_tokens", event.usage.cached_tokens);
}

}  // namespace

void MergeEvent(Event&& from, Event* into) {
  Append(std::move(from.tokens), &into->tokens);
  into->text += from.text;
  if (from.logprobs.width > 0) {
    into->logprobs.width = from.logprobs.width;
    Append(std::move(from.logprobs.ids), &into->logprobs.ids);
    Append(std::move(from.logprobs.values), &into->logprobs.values);
  }
  into->cum_logprob = from.cum_logprob;
  Append(std::move(from.context_logits), &into->context_logits);
  Append(std::move(from.generation_logits), &into->generation_logits);
  into->reason = from.reason;
  into->request_done = into->request_done || from.request_done;
  into->stop_reason = std::move(from.stop_reason);
  into->error = std::move(from.error);
  into->usage = from.usage;
  into->perf = from.perf;
}

std::vector<OutputTensor> BuildOutputs(const ResponsePlan& plan, int32_t row, Event&& event) {
  Outputs out(plan.batched);
  std::vector<int32_t> all;
  const std::vector<int32_t>* ids = &event.tokens;
  if (plan.echo) {
    all = plan.prompts[static_cast<size_t>(row)];
    const size_t prompt_size = all.size();
    all.insert(all.end(), event.tokens.begin(), event.tokens.end());
    if (plan.text) event.text = EchoText(plan, all, prompt_size, event.text);
    ids = &all;
  }
  const auto length = static_cast<int32_t>(ids->size());
  if (plan.pipeline && plan.text_output) out.AddText(event.text);
  if (plan.ids) out.AddIds(*ids);
  AddLogprobs(plan, event, &out);
  AddLogits(plan, event, &out);
  if (plan.batch_index) out.AddScalar("batch_index", row);
  if (plan.sequence_index) out.AddScalar("sequence_index", event.sequence_index);
  AddPerf(plan, event, &out);
  if (plan.num_input_tokens) out.AddScalar("num_input_tokens", event.usage.prompt_tokens);
  if (plan.num_output_tokens) out.AddScalar("num_output_tokens", length);
  if (plan.text_output && !plan.pipeline) out.AddString("text_output", event.text);
  if (plan.top_log_probs || plan.top_log_prob_ids) AddTopLogprobs(plan, event, &out);
  AddEnding(plan, event, &out);
  if (plan.piped) out.AddFlow(plan, event.text);
  return out.Take();
}

std::vector<OutputTensor> BuildStoppedOutputs(const ResponsePlan& plan, int32_t row,
                                              Event&& event) {
  Outputs out(plan.batched);
  if (plan.pipeline && plan.text_output) out.AddText(plan.accumulate_text ? event.text : "");
  if (plan.piped && plan.ids) out.AddIds({});
  if (plan.batch_index) out.AddScalar("batch_index", row);
  if (plan.sequence_index) out.AddScalar("sequence_index", event.sequence_index);
  AddEnding(plan, event, &out);
  if (plan.piped) out.AddFlow(plan, "");
  return out.Take();
}

uint16_t FloatToHalf(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) {  // infinity or NaN
    return static_cast<uint16_t>(sign | 0x7c00u | (magnitude > 0x7f800000u ? 0x200u : 0u));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  uint32_t mantissa = magnitude & 0x7fffffu;
  int exponent = static_cast<int>(magnitude >> 23) - 127 + 15;
  int shift = 13;
  if (exponent <= 0) {  // a subnormal half, or zero
    if (exponent < -10) return sign;
    mantissa |= 0x800000u;
    shift = 14 - exponent;
    exponent = 0;
  }
  uint32_t half = (static_cast<uint32_t>(exponent) << 10) + (mantissa >> shift);
  const uint32_t rest = mantissa & ((1u << shift) - 1);
  const uint32_t middle = 1u << (shift - 1);
  if (rest > middle || (rest == middle && (half & 1u) != 0)) ++half;  // a carry is a correct carry
  return static_cast<uint16_t>(sign | half);
}

}  // namespace slipstream::triton
