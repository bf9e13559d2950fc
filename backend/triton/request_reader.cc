// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/request_reader.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "executor/admission.h"
#include "executor/utf8.h"
#include "executor/word_list.h"
#include "triton/field_reader.h"
#include "triton/nearest_name.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {
namespace {

constexpr size_t kMaxQuote = 100;  // bytes of a client's text in a message

std::string Quoted(const std::string& text) { return "'" + ShownText(text, kMaxQuote) + "'"; }

std::vector<int32_t> ReadPrompt(FieldReader* in) {
  std::vector<int32_t> ids = in->Int32Row("input_ids");
  const std::optional<int32_t> length = in->Int32("input_lengths");
  if (ids.empty()) in->Fail(Status::InvalidArgument("input_ids: this input is required"));
  if (!length.has_value()) {
    in->Fail(Status::InvalidArgument("input_lengths: this input is required"));
    return ids;
  }
  if (*length < 1 || static_cast<size_t>(*length) > ids.size()) {
    in->Fail(Status::InvalidArgument("input_lengths: " + std::to_string(*length) +
                                     " is outside 1 .. " + std::to_string(ids.size()) +
                                     ", the number of input_ids"));
    return ids;
  }
  ids.resize(static_cast<size_t>(*length));  // what follows is padding
  return ids;
}

// Greedy unless the client asks for randomness: by a temperature above 0, or by a limit (top_k
// above 1, top_p, min_p), which implies temperature 1.
void ReadTemperature(FieldReader* in, SamplingParams* sampling) {
  const std::optional<float> temperature = in->Float("temperature");
  in->Set("runtime_top_k", &sampling->top_k);
  const std::optional<float> top_p = in->Float("runtime_top_p");
  in->Set("min_p", &sampling->min_p);
  const bool has_top_p = top_p.has_value() && !(*top_p <= 0);
  if (has_top_p) sampling->top_p = *top_p;
  if (sampling->top_k == 1) {
    sampling->temperature = 0;
    sampling->top_k = 0;
  } else if (temperature.has_value()) {
    sampling->temperature = *temperature;
  } else {
    const bool limited = sampling->top_k != 0 || has_top_p || sampling->min_p != 0;
    sampling->temperature = limited ? 1.0f : 0.0f;
  }
}

void ReadMinTokens(FieldReader* in, SamplingParams* sampling) {
  const std::optional<int32_t> tokens = in->Int32("min_tokens");
  const std::optional<int32_t> length = in->Int32("min_length");
  if (tokens.has_value() && length.has_value() && *tokens != *length) {
    in->Fail(Status::InvalidArgument("min_length: " + std::to_string(*length) +
                                     " differs from min_tokens, " + std::to_string(*tokens) +
                                     "; they are two names of one setting"));
  }
  sampling->min_tokens = tokens.value_or(length.value_or(0));
}

void ReadSampling(FieldReader* in, SamplingParams* sampling) {
  ReadTemperature(in, sampling);
  ReadMinTokens(in, sampling);
  in->Set("runtime_top_p_min", &sampling->top_p_min);
  in->Set("runtime_top_p_decay", &sampling->top_p_decay);
  in->Set("runtime_top_p_reset_ids", &sampling->top_p_reset_id);
  in->Set("repetition_penalty", &sampling->repetition_penalty);
  in->Set("presence_penalty", &sampling->presence_penalty);
  in->Set("frequency_penalty", &sampling->frequency_penalty);
  in->Set("prompt_ignore_length", &sampling->prompt_ignore_length);
  if (const std::optional<uint64_t> seed = in->Uint64("seed"); seed.has_value()) {
    sampling->seed = *seed;
    sampling->has_seed = true;
  }
}

// Rows are answered one by one, so nothing is ever padded with it. It may lie beyond the
// vocabulary: some tokenizers add a padding token that their model does not have.
void CheckPadId(FieldReader* in) {
  const int32_t pad_id = in->Int32("pad_id").value_or(-1);
  if (pad_id >= -1) return;
  in->Fail(Status::InvalidArgument("pad_id: " + std::to_string(pad_id) + " must be at least -1"));
}

// -1 = none; absent = the checkpoint's own. Through an ensemble the id is the tokenizer's single
// one unless the client gave another; a checkpoint may have more ends than that, and any of its own
// stands for all of them there.
std::vector<int32_t> ReadEndIds(FieldReader* in, const ReaderSettings& settings, bool ensemble) {
  const std::optional<int32_t> end_id = in->Int32("end_id");
  if (!end_id.has_value()) return settings.end_ids;
  if (*end_id == -1) return {};
  const bool own = std::find(settings.end_ids.begin(), settings.end_ids.end(), *end_id) !=
                   settings.end_ids.end();
  if (ensemble && own) return settings.end_ids;
  return {*end_id};
}

std::vector<std::vector<int32_t>> ReadWords(FieldReader* in, std::string_view name) {
  const std::vector<int32_t> data = in->Int32Row(name);
  auto words = ParseWordList(name, data.data(), data.size());
  if (words.ok()) return std::move(words).value();
  in->Fail(words.status());
  return {};
}

std::vector<std::pair<int32_t, float>> ReadBias(FieldReader* in, int32_t vocab_size) {
  std::vector<std::pair<int32_t, float>> bias;
  const std::vector<float> weights = in->FloatRow("embedding_bias");
  // Fewer are in order: a model's vocabulary is often padded beyond its tokenizer's.
  if (weights.size() > static_cast<size_t>(vocab_size)) {
    in->Fail(Status::InvalidArgument("embedding_bias: has " + std::to_string(weights.size()) +
                                     " values, the vocabulary has " + std::to_string(vocab_size)));
    return bias;
  }
  for (size_t id = 0; id < weights.size(); ++id) {
    if (!std::isfinite(weights[id])) {
      in->Fail(Status::InvalidArgument("embedding_bias: the value of token " + std::to_string(id) +
                                       " is not finite"));
      return bias;
    }
    if (weights[id] != 0) bias.emplace_back(static_cast<int32_t>(id), weights[id]);
  }
  return bias;
}

// The same from the ids of words with their weights, which add up.
std::vector<std::pair<int32_t, float>> SumBias(FieldReader* in, const TokenizedRow& tokenized,
                                               int32_t vocab_size) {
  std::map<int32_t, float> sums;
  for (const auto& [id, weight] : tokenized.bias) sums[id] += weight;
  std::vector<std::pair<int32_t, float>> bias;
  for (const auto& [id, weight] : sums) {
    if (!std::isfinite(weight)) {
      in->Fail(Status::InvalidArgument("embedding_bias: the value of token " + std::to_string(id) +
                                       " is not finite"));
    }
    if (id >= vocab_size) {
      in->Fail(Status::InvalidArgument("embedding_bias: token " + std::to_string(id) +
                                       " is beyond the vocabulary, which has " +
                                       std::to_string(vocab_size)));
    }
    if (weight != 0) bias.emplace_back(id, weight);
  }
  return bias;
}

WordList WithoutEmpty(WordList words) {
  words.erase(
      std::remove_if(words.begin(), words.end(), [](const auto& word) { return word.empty(); }),
      words.end());
  return words;
}

Retention ReadRetention(FieldReader* in) {
  Retention retention;
  in->Set("retention_decode_priority", &retention.decode_priority);
  in->Set("retention_decode_duration_ms", &retention.decode_duration_ms);
  const auto starts = in->Int32Row("retention_token_range_starts");
  const auto ends = in->Int32Row("retention_token_range_ends");
  const auto priorities = in->Int32Row("retention_token_range_priorities");
  const auto durations = in->Int32Row("retention_token_range_durations_ms");
  const auto check = [&](const char* name, size_t size, bool optional) {
    if (size == starts.size() || (optional && size == 0)) return;
    in->Fail(Status::InvalidArgument(std::string(name) + ": has " + std::to_string(size) +
                                     " values, retention_token_range_starts has " +
                                     std::to_string(starts.size())));
  };
  check("retention_token_range_ends", ends.size(), false);
  check("retention_token_range_priorities", priorities.size(), false);
  check("retention_token_range_durations_ms", durations.size(), true);
  if (!in->status().ok()) return retention;
  for (size_t i = 0; i < starts.size(); ++i) {
    retention.prompt.push_back(
        {starts[i], ends[i], priorities[i], durations.empty() ? -1 : durations[i]});
  }
  return retention;
}

void ReadPriority(const RequestData& request, FieldReader* in, RequestSpec* spec) {
  if (const auto parameter = request.parameters().find("priority");
      parameter != request.parameters().end()) {
    char* end = nullptr;
    const long value = std::strtol(parameter->second.c_str(), &end, 10);
    if (parameter->second.empty() || *end != '\0' || value < 0 || value > 9) {
      in->Fail(Status::InvalidArgument("priority: " + Quoted(parameter->second) +
                                       " is not a whole number in 0 .. 9"));
    }
    spec->priority = static_cast<int32_t>(value);
  }
  in->Set("priority", &spec->priority);
}

// Triton's own timeout in microseconds. gRPC and HTTP's infer hand it to the server, HTTP's
// generate leaves it among the parameters. 0 = none.
uint64_t TimeoutUs(const RequestData& request, FieldReader* in) {
  const auto parameter = request.parameters().find("timeout");
  if (parameter == request.parameters().end()) return request.timeout_us();
  char* end = nullptr;
  const long long value = std::strtoll(parameter->second.c_str(), &end, 10);
  if (parameter->second.empty() || *end != '\0' || value < 0) {
    in->Fail(Status::InvalidArgument("timeout: " + Quoted(parameter->second) +
                                     " is not a number of microseconds, at least 0"));
    return 0;
  }
  return static_cast<uint64_t>(value);
}

// The earlier of timeout_ms and Triton's timeout.
void ReadDeadline(const RequestData& request, TimeNs now, FieldReader* in, RequestSpec* spec) {
  if (const uint64_t timeout_us = TimeoutUs(request, in); timeout_us > 0) {
    const uint64_t longest = static_cast<uint64_t>(kNever - now) / 1000;
    if (timeout_us < longest) spec->deadline = now + static_cast<TimeNs>(timeout_us * 1000);
  }
  const std::optional<int32_t> timeout = in->Int32("timeout_ms");
  if (!timeout.has_value()) return;
  if (*timeout < 1) {
    in->Fail(
        Status::InvalidArgument("timeout_ms: " + std::to_string(*timeout) + " must be at least 1"));
    return;
  }
  spec->deadline = std::min(spec->deadline, now + TimeNs{*timeout} * 1'000'000);
}

void ReadSalt(const RequestData& request, FieldReader* in, RequestSpec* spec) {
  if (const auto parameter = request.parameters().find("cache_salt");
      parameter != request.parameters().end()) {
    spec->cache_salt = HashCacheSalt(parameter->second);
  }
  if (const auto salt = in->String("cache_salt"); salt.has_value()) {
    spec->cache_salt = HashCacheSalt(*salt);
  }
}

void ReadLogprobs(FieldReader* in, RequestSpec* spec) {
  const bool chosen = in->Bool("return_log_probs").value_or(false);
  const std::optional<int32_t> alternatives = in->Int32("num_logprobs");
  if (alternatives.has_value() && *alternatives < 0) {
    in->Fail(Status::InvalidArgument("num_logprobs: " + std::to_string(*alternatives) +
                                     " must be at least 0"));
  }
  spec->num_logprobs = std::max(alternatives.value_or(-1), chosen ? 0 : -1);
  if (alternatives.value_or(0) == 0 && !chosen) spec->num_logprobs = -1;
}

// What a tokenizer makes: tensors of the request, or `tokenized`, which is used up.
void ReadTokens(FieldReader* in, TokenizedRow* tokenized, const ReaderSettings& settings,
                RequestSpec* spec) {
  if (tokenized == nullptr) {
    spec->prompt = ReadPrompt(in);
    spec->bad_words = ReadWords(in, "bad_words_list");
    spec->logit_bias = ReadBias(in, settings.vocab_size);
  } else {
    spec->prompt = std::move(tokenized->ids);
    spec->bad_words = WithoutEmpty(std::move(tokenized->bad_words));
    spec->logit_bias = SumBias(in, *tokenized, settings.vocab_size);
  }
}

StatusOr<RequestSpec> ReadRow(const RequestData& request, int64_t row,
                              const ReaderSettings& settings, const ResponsePlan& plan,
                              TokenizedRow* tokenized, TimeNs now) {
  FieldReader in(request, row);
  RequestSpec spec;
  spec.client_id = request.id();
  ReadTokens(&in, tokenized, settings, &spec);
  in.Set("request_output_len", &spec.max_new_tokens);
  ReadSampling(&in, &spec.sampling);
  spec.end_ids = ReadEndIds(&in, settings, plan.piped || settings.pipeline);
  CheckPadId(&in);
  spec.stop_sequences = ReadWords(&in, "stop_words_list");
  spec.stop_strings = in.StringRow("stop_strings");
  in.Set("include_stop_in_output", &spec.include_stop);
  in.Set("num_return_sequences", &spec.num_return_sequences);
  ReadLogprobs(&in, &spec);
  spec.return_context_logits = plan.context_logits;
  spec.return_generation_logits = plan.generation_logits;
  spec.return_text = plan.text;
  spec.skip_special_tokens = plan.skip_special_tokens;
  spec.streaming = plan.streaming;
  ReadPriority(request, &in, &spec);
  ReadDeadline(request, now, &in, &spec);
  spec.arrival = now;
  ReadSalt(request, &in, &spec);
  spec.retention = ReadRetention(&in);
  if (!in.status().ok()) return in.status();
  // Batches are rectangular: a row with fewer stop strings is filled up with empty ones.
  auto& stops = spec.stop_strings;
  stops.erase(std::remove(stops.begin(), stops.end(), ""), stops.end());
  return spec;
}

// What a request may carry beside tensors. HTTP's generate puts every key that is no input here, so
// that a misspelt input must be an error. Keys of Triton's own and of its clients mean nothing
// here.
Status CheckParameterNames(const RequestData& request, const ReaderSettings& settings) {
  static constexpr std::string_view kKnown[] = {"request_type", "priority", "cache_salt", "timeout",
                                                "id"};
  static constexpr std::string_view kForeign[] = {"triton_", "sequence_", "binary_data"};
  for (const auto& [name, value] : request.parameters()) {
    const auto begins = [&name = name](std::string_view with) { return name.rfind(with, 0) == 0; };
    if (std::find(std::begin(kKnown), std::end(kKnown), name) != std::end(kKnown) ||
        std::any_of(std::begin(kForeign), std::end(kForeign), begins)) {
      continue;
    }
    std::vector<std::string_view> names(std::begin(kKnown), std::end(kKnown));
    for (const TensorRow& row : InputRows(settings.pipeline ? Role::kPipeline : Role::kLlm)) {
      names.emplace_back(row.name);
    }
    return Status::InvalidArgument(ShownText(name, kMaxQuote) +
                                   ": neither an input nor a parameter of this model; the " +
                                   "nearest is '" + std::string(NearestName(name, names)) + "'");
  }
  return Status::Ok();
}

Status CheckParameters(const RequestData& request, const ReaderSettings& settings) {
  if (Status s = CheckParameterNames(request, settings); !s.ok()) return s;
  const auto type = request.parameters().find("request_type");
  if (type == request.parameters().end() || type->second == "context_and_generation") {
    return Status::Ok();
  }
  if (type->second == "context_only" || type->second == "generation_only") {
    return Status::Unsupported("request_type: " + Quoted(type->second) +
                               " is not supported (no support for disaggregated serving)");
  }
  return Status::InvalidArgument("request_type: " + Quoted(type->second) +
                                 " is none of context_and_generation, context_only, "
                                 "generation_only");
}

StatusOr<bool> IsStop(const RequestData& request) {
  UniformFieldReader in(request);
  const bool stop = in.Bool("stop").value_or(false);
  if (!in.status().ok()) return in.status();
  if (!stop) return false;
  if (request.id().empty()) {
    return Status::Internal("Trying to stop a request but request ID is not provided");
  }
  return true;
}

// `tokenized`: null when the request itself has the tokens.
StatusOr<LlmRequest> ReadRows(const RequestData& request, std::vector<TokenizedRow>* tokenized,
                              const ReaderSettings& settings, TimeNs now) {
  if (Status s = CheckParameters(request, settings); !s.ok()) return s;
  LlmRequest result;
  auto plan = ReadResponsePlan(request, settings);
  if (!plan.ok()) return plan.status();
  result.plan = std::move(plan).value();
  for (int64_t row = 0; row < request.batch(); ++row) {
    TokenizedRow* made = tokenized == nullptr ? nullptr : &(*tokenized)[static_cast<size_t>(row)];
    auto spec = ReadRow(request, row, settings, result.plan, made, now);
    if (!spec.ok()) return spec.status();
    if (result.plan.echo) result.plan.prompts.push_back(spec->prompt);
    result.rows.push_back(std::move(spec).value());
  }
  return result;
}

}  // namespace

uint64_t HashCacheSalt(const std::string& salt) {
  if (salt.empty()) return 0;
  const std::vector<int32_t> units(salt.begin(), salt.end());
  const BlockHash hash = ChainHash(RootHash(0), units.data(), static_cast<int32_t>(units.size()));
  return hash.lo == 0 ? 1 : hash.lo;
}

StatusOr<Standing> ReadStanding(const RequestData& request, TimeNs now, int32_t max_sequences) {
  Standing standing = {kPriorityClasses - 1, 0, 0};
  for (int64_t row = 0; row < request.batch(); ++row) {
    FieldReader in(request, row);
    RequestSpec spec;
    ReadPriority(request, &in, &spec);
    ReadDeadline(request, now, &in, &spec);
    spec.num_return_sequences = in.Int32("num_return_sequences").value_or(1);
    if (!in.status().ok()) return in.status();
    // One out of range is refused with the rest of the request.
    standing.priority = std::min(standing.priority, std::max(spec.priority, 0));
    standing.deadline = std::max(standing.deadline, spec.deadline);
    const int32_t n = spec.num_return_sequences;
    standing.sequences += n >= 1 && n <= max_sequences ? n : 1;
  }
  return standing;
}

StatusOr<LlmRequest> ReadLlmRequest(const RequestData& request, const ReaderSettings& settings,
                                    TimeNs now) {
  LlmRequest result;
  const auto stop = IsStop(request);
  if (!stop.ok()) return stop.status();
  if (*stop) {
    result.stop = true;
    return result;
  }
  if (Status s = CheckInputs(Role::kLlm, request); !s.ok()) return s;
  return ReadRows(request, nullptr, settings, now);
}

StatusOr<LlmRequest> ReadPipelineRequest(const RequestData& request,
                                         std::vector<TokenizedRow> tokenized,
                                         const ReaderSettings& settings, TimeNs now) {
  return ReadRows(request, &tokenized, settings, now);
}

}  // namespace slipstream::triton
