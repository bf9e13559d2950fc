// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "request_bytes.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "fuzz_target.h"

namespace slipstream::fuzz {
namespace {

using triton::InputRows;
using triton::OutputRows;
using triton::Role;
using triton::TensorRow;
using triton::host::In;
using triton::host::InBool;
using triton::host::InStrings;
using triton::host::Output;
using triton::host::RequestSpec;

constexpr size_t kForeignName = 255;  // a name that is spelled out follows
constexpr const char* kParameters[] = {"request_type", "priority", "cache_salt", "timeout",
                                       "triton_enable_empty_final_response"};

template <typename Names>
size_t IndexOf(const Names& names, const std::string& name) {
  const auto found = std::find_if(std::begin(names), std::end(names),
                                  [&](const auto& known) { return name == known; });
  return found == std::end(names) ? kForeignName : static_cast<size_t>(found - std::begin(names));
}

std::vector<std::string> NamesOf(const std::vector<TensorRow>& rows) {
  std::vector<std::string> names;
  for (const TensorRow& row : rows) names.emplace_back(row.name);
  return names;
}

template <typename Names>
void PackName(const Names& names, const std::string& name, OutputBytes* out) {
  const size_t index = IndexOf(names, name);
  out->Byte(index);
  if (index == kForeignName) out->Text(name);
}

template <typename Names>
std::string UnpackName(const Names& names, InputBytes* in) {
  const size_t index = in->Byte();
  if (index == kForeignName) return in->Text();
  return *(std::begin(names) + static_cast<ptrdiff_t>(index % std::size(names)));
}

Output UnpackTensor(const std::vector<std::string>& names, InputBytes* in) {
  Output tensor;
  tensor.name = UnpackName(names, in);
  tensor.dtype = static_cast<TRITONSERVER_DataType>(in->Below(TRITONSERVER_TYPE_BF16 + 1));
  tensor.shape.resize(in->Below(5));
  for (int64_t& dim : tensor.shape) dim = in->Value<int32_t>();
  tensor.data = in->Text();
  return tensor;
}

// Adds those of `inputs` that the role knows.
void AddKnown(Role role, std::vector<Output> inputs, RequestSpec* spec) {
  for (Output& input : inputs) {
    if (FindRow(InputRows(role), input.name) != nullptr) spec->inputs.push_back(std::move(input));
  }
}

Output Float(const char* name, float value) { return In<float>(name, {1, 1}, {value}); }
Output Int(const char* name, int32_t value) { return In<int32_t>(name, {1, 1}, {value}); }

void AddSampling(Role role, RequestSpec* spec) {
  AddKnown(role,
           {Float("temperature", 0.7f),
            Int("runtime_top_k", 5),
            Int("top_k", 5),
            Float("runtime_top_p", 0.9f),
            Float("top_p", 0.9f),
            Float("runtime_top_p_min", 0.1f),
            Float("runtime_top_p_decay", 0.5f),
            Int("runtime_top_p_reset_ids", 5),
            Float("min_p", 0.1f),
            Float("repetition_penalty", 1.1f),
            Float("presence_penalty", 0.5f),
            Float("frequency_penalty", -0.5f),
            Int("prompt_ignore_length", 1),
            Int("min_tokens", 1),
            Int("min_length", 1),
            Int("end_id", 2),
            Int("pad_id", 0),
            Int("beam_width", 1),
            Int("priority", 3),
            Int("timeout_ms", 20000),
            Int("num_logprobs", 2),
            Int("num_return_sequences", 1),
            In<uint64_t>("seed", {1, 1}, {7}),
            InStrings("cache_salt", {1, 1}, {"salt"})},
           spec);
  for (const char* flag :
       {"return_log_probs", "return_finish_reason", "return_usage", "exclude_input_in_output",
        "return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens"}) {
    AddKnown(role, {InBool(flag, true)}, spec);
  }
}

void AddText(Role role, RequestSpec* spec) {
  AddKnown(
      role,
      {InStrings("stop_strings", {1, 2}, {"end", "\n\n"}),
       InStrings("stop_words", {1, 2}, {"end", "\n\n"}), InBool("include_stop_in_output", true),
       InBool("return_text", true), InBool("skip_special_tokens", false)},
      spec);
}

void AddLogits(Role role, RequestSpec* spec) {
  for (const char* flag :
       {"return_context_logits", "return_generation_logits", "return_kv_cache_reuse_stats"}) {
    AddKnown(role, {InBool(flag, true)}, spec);
  }
}

RequestSpec Prompt(const std::vector<int32_t>& ids, int32_t max_tokens) {
  const auto size = static_cast<int32_t>(ids.size());
  RequestSpec spec;
  spec.inputs = {In<int32_t>("input_ids", {1, size}, ids),
                 In<int32_t>("input_lengths", {1, 1}, {size}),
                 In<int32_t>("request_output_len", {1, 1}, {max_tokens})};
  return spec;
}

std::vector<RequestSpec> LlmRequests() {
  std::vector<RequestSpec> all = {Prompt({5}, 1),          Prompt({5, 6, 7}, 4), Prompt({5, 6}, 3),
                                  Prompt({9, 9, 9, 9}, 2), Prompt({1, 2}, 4),    Prompt({3}, 2)};
  AddSampling(Role::kLlm, &all[1]);
  AddText(Role::kLlm, &all[4]);
  AddLogits(Role::kLlm, &all[5]);
  auto& words = all[2].inputs;
  words.push_back(In<int32_t>("stop_words_list", {1, 2, 2}, {5, 6, 1, 2}));
  words.push_back(In<int32_t>("bad_words_list", {1, 2, 1}, {7, 1}));
  words.push_back(In<float>("embedding_bias", {1, 3}, {0.0f, 1.5f, -2.0f}));
  words.push_back(InBool("streaming", true));
  auto& retention = all[3].inputs;
  retention.push_back(In<int32_t>("retention_token_range_starts", {1, 1}, {0}));
  retention.push_back(In<int32_t>("retention_token_range_ends", {1, 1}, {2}));
  retention.push_back(In<int32_t>("retention_token_range_priorities", {1, 1}, {50}));
  retention.push_back(In<int32_t>("retention_token_range_durations_ms", {1, 1}, {-1}));
  retention.push_back(In<int32_t>("retention_decode_priority", {1, 1}, {80}));
  retention.push_back(In<int32_t>("retention_decode_duration_ms", {1, 1}, {1000}));
  RequestSpec batch;
  batch.inputs = {In<int32_t>("input_ids", {2, 3}, {5, 6, 0, 7, 8, 9}),
                  In<int32_t>("input_lengths", {2, 1}, {2, 3}),
                  In<int32_t>("request_output_len", {2, 1}, {2, 1})};
  all.push_back(batch);
  RequestSpec stop = Prompt({1}, 1);
  stop.id = "mine";
  stop.inputs.push_back(InBool("stop", true));
  all.push_back(stop);
  return all;
}

std::vector<RequestSpec> PipelineRequests() {
  const auto ask = [](const std::string& text) {
    RequestSpec spec;
    spec.inputs = {InStrings("text_input", {1, 1}, {text}), In<int32_t>("max_tokens", {1, 1}, {3})};
    return spec;
  };
  std::vector<RequestSpec> all = {ask("a"),
                                  ask("a fox"),
                                  ask("b"),
                                  ask(""),
                                  ask("c"),
                                  ask("d"),
                                  ask(std::string(50, 'x') + std::string(50, 'y'))};
  AddSampling(Role::kPipeline, &all[1]);
  AddText(Role::kPipeline, &all[4]);
  AddLogits(Role::kPipeline, &all[5]);
  auto& words = all[2].inputs;
  words.push_back(InStrings("bad_words", {1, 2}, {"ab", ""}));
  words.push_back(InStrings("embedding_bias_words", {1, 1}, {"x"}));
  words.push_back(In<float>("embedding_bias_weights", {1, 1}, {0.5f}));
  words.push_back(InBool("stream", true));
  all[3].inputs.push_back(
      InStrings("messages", {1, 1}, {R"([{"role": "user", "content": "hi"}])"}));
  all[3].inputs.push_back(InStrings("chat_options", {1, 1}, {R"({"tools": []})"}));
  RequestSpec batch;
  batch.inputs = {InStrings("text_input", {2, 1}, {"a", "bc"}),
                  In<int32_t>("max_tokens", {2, 1}, {1, 2}),
                  In<float>("temperature", {2, 1}, {0.5f, 1.0f})};
  all.push_back(batch);
  return all;
}

std::vector<RequestSpec> TokenizeRequests() {
  const auto ask = [](const std::string& text) {
    RequestSpec spec;
    spec.inputs = {InStrings("QUERY", {1, 1}, {text}),
                   In<int32_t>("REQUEST_OUTPUT_LEN", {1, 1}, {3})};
    return spec;
  };
  std::vector<RequestSpec> all = {ask("a fox"), ask("b"), ask("")};
  auto& words = all[1].inputs;
  words.push_back(InStrings("BAD_WORDS_DICT", {1, 2}, {"ab", ""}));
  words.push_back(InStrings("STOP_WORDS_DICT", {1, 1}, {"stop"}));
  words.push_back(InStrings("EMBEDDING_BIAS_WORDS", {1, 2}, {"x", "yz"}));
  words.push_back(In<float>("EMBEDDING_BIAS_WEIGHTS", {1, 2}, {0.5f, -1.0f}));
  words.push_back(In<int32_t>("END_ID", {1, 1}, {2}));
  words.push_back(In<int32_t>("PAD_ID", {1, 1}, {0}));
  all[2].inputs.push_back(
      InStrings("MESSAGES", {1, 1}, {R"([{"role": "user", "content": "hi"}])"}));
  all[2].inputs.push_back(InStrings("CHAT_OPTIONS", {1, 1}, {R"({"tools": []})"}));
  RequestSpec batch;
  batch.inputs = {InStrings("QUERY", {2, 1}, {"a", "long one"}),
                  In<int32_t>("REQUEST_OUTPUT_LEN", {2, 1}, {1, 2}),
                  InStrings("STOP_WORDS_DICT", {2, 1}, {"x", ""})};
  all.push_back(batch);
  all.push_back(ask("fewer weights than words"));
  all.back().inputs.push_back(InStrings("EMBEDDING_BIAS_WORDS", {1, 2}, {"x", "yz"}));
  all.back().inputs.push_back(In<float>("EMBEDDING_BIAS_WEIGHTS", {1, 1}, {0.5f}));
  return all;
}

std::vector<RequestSpec> DetokenizeRequests() {
  const auto ids = [](std::vector<int64_t> shape, const std::vector<int32_t>& values,
                      const std::vector<int32_t>& lengths) {
    RequestSpec spec;
    const auto beams = static_cast<int64_t>(lengths.size()) / shape[0];
    spec.inputs = {In<int32_t>("SEQUENCE_LENGTH", {shape[0], beams}, lengths),
                   In<int32_t>("TOKENS_BATCH", std::move(shape), values)};
    return spec;
  };
  std::vector<RequestSpec> all = {ids({1, 1, 3}, {97, 98, 99}, {3}),
                                  ids({1, 2, 2}, {97, 98, 0xC3, 0xA9}, {2, 1}),
                                  ids({2, 1, 2}, {97, -1, 300, 98}, {1, 2}), RequestSpec()};
  all.push_back(all[0]);
  all.back().inputs[0] = In<int32_t>("SEQUENCE_LENGTH", {1, 0}, {});  // no beam
  all[0].inputs.push_back(In<float>("ACCEPTANCE_RATE", {1, 1}, {0.5f}));
  all[1].inputs.push_back(InStrings("FLOW", {1, 1}, {kLiveFlow}));
  all[3].inputs.push_back(InStrings("FLOW", {1, 2}, {kLiveFlow, "settled"}));
  return all;
}

// Every input that a role serves is in one of its requests, so that mutations reach it.
void RequireAll(Role role, const std::vector<RequestSpec>& requests) {
  for (const TensorRow& row : InputRows(role)) {
    if (row.use != triton::Use::kServed) continue;
    const auto has = [&](const RequestSpec& spec) {
      return std::any_of(spec.inputs.begin(), spec.inputs.end(),
                         [&](const Output& input) { return input.name == row.name; });
    };
    Require(std::any_of(requests.begin(), requests.end(), has),
            std::string("no valid request has ") + row.name);
  }
}

}  // namespace

std::string PackRequest(Role role, const RequestSpec& spec) {
  const auto names = NamesOf(InputRows(role));
  const auto outputs = NamesOf(OutputRows(role));
  OutputBytes out;
  out.Text(spec.id).Value(static_cast<uint32_t>(spec.timeout_us)).Byte(spec.inputs.size());
  for (const Output& input : spec.inputs) {
    PackName(names, input.name, &out);
    out.Byte(input.dtype).Byte(input.shape.size());
    for (const int64_t dim : input.shape) out.Value(static_cast<int32_t>(dim));
    out.Text(input.data);
  }
  out.Byte(spec.outputs.size());
  for (const std::string& name : spec.outputs) PackName(outputs, name, &out);
  out.Byte(spec.parameters.size());
  for (const auto& [key, value] : spec.parameters) {
    PackName(kParameters, key, &out);
    out.Text(value);
  }
  return out.bytes();
}

RequestSpec UnpackRequest(Role role, InputBytes* in) {
  const auto names = NamesOf(InputRows(role));
  const auto outputs = NamesOf(OutputRows(role));
  RequestSpec spec;
  spec.id = in->Text();
  spec.timeout_us = in->Value<uint32_t>();
  for (size_t left = in->Below(64); left > 0; --left) {
    spec.inputs.push_back(UnpackTensor(names, in));
  }
  for (size_t left = in->Below(64); left > 0; --left) {
    spec.outputs.push_back(UnpackName(outputs, in));
  }
  if (spec.outputs.empty()) spec.outputs = outputs;  // as when the client names none
  for (size_t left = in->Below(8); left > 0; --left) {
    std::string key = UnpackName(kParameters, in);
    spec.parameters[std::move(key)] = in->Text();
  }
  return spec;
}

StatusOr<triton::RequestData> ReadSpec(const RequestSpec& spec, bool batched) {
  triton::RequestData::Fields fields;
  fields.id = spec.id;
  fields.timeout_us = spec.timeout_us;
  fields.outputs = spec.outputs;
  fields.parameters = spec.parameters;
  for (const Output& input : spec.inputs) {
    auto tensor = std::make_unique<triton::Tensor>();
    tensor->name = input.name;
    tensor->dtype = input.dtype;
    tensor->shape = input.shape;
    tensor->storage = input.data;
    tensor->data = tensor->storage;
    fields.inputs.push_back(std::move(tensor));
  }
  return triton::RequestData::Create(std::move(fields), batched);
}

std::vector<RequestSpec> GoodRequests(Role role) {
  std::vector<RequestSpec> all = role == Role::kLlm        ? LlmRequests()
                                 : role == Role::kPipeline ? PipelineRequests()
                                 : role == Role::kTokenize ? TokenizeRequests()
                                                           : DetokenizeRequests();
  all[0].parameters = {{"priority", "2"}, {"cache_salt", "s"}, {"timeout", "5000000"}};
  RequireAll(role, all);
  return all;
}

void CheckRefusal(const Status& status) {
  Require(status.code() == StatusCode::kInvalidArgument ||
              status.code() == StatusCode::kUnsupported ||
              // Compatible with TensorRT-LLM's backend.
              status.message() == "Trying to stop a request but request ID is not provided",
          status.message());
  Require(!status.message().empty(), "it says something");
}

}  // namespace slipstream::fuzz
