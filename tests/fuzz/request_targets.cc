// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "input_bytes.h"
#include "request_bytes.h"
#include "targets.h"
#include "triton/pipeline_wiring.h"
#include "triton/request_reader.h"

namespace slipstream::fuzz {
namespace {

using triton::LlmRequest;
using triton::ReaderSettings;
using triton::RequestData;
using triton::Role;

constexpr TimeNs kNow = 1000000000;

ReaderSettings Settings(bool pipeline, bool batched, bool decoupled) {
  ReaderSettings settings;
  settings.batched = batched;
  settings.decoupled = decoupled;
  settings.pipeline = pipeline;
  settings.num_declared_outputs = OutputRows(pipeline ? Role::kPipeline : Role::kLlm).size();
  settings.vocab_size = 100;
  settings.end_ids = {2, 3};
  return settings;
}

RequestLimits Limits() {
  RequestLimits limits;
  limits.vocab_size = 100;
  limits.max_seq_len = 64;
  limits.kv_capacity_tokens = 1000;
  limits.has_token_table = true;
  return limits;
}

bool InVocabulary(const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= 100) return false;
  }
  return true;
}

void CheckSampling(const SamplingParams& s) {
  Require(s.temperature >= 0 && std::isfinite(s.temperature) && s.top_k >= 0, "temperature");
  Require(s.top_p >= 0 && s.top_p <= 1 && s.min_p >= 0 && s.min_p <= 1, "top_p");
  Require(s.top_p_decay > 0 && s.top_p_decay <= 1, "top_p_decay");
  Require(s.top_p_min >= 0 && s.top_p_min <= 1 && s.top_p_reset_id < 100, "top_p_min");
  Require(s.repetition_penalty > 0 && std::isfinite(s.repetition_penalty), "repetition_penalty");
  Require(std::isfinite(s.presence_penalty) && std::isfinite(s.frequency_penalty), "penalties");
  Require(s.min_tokens >= 0 && s.prompt_ignore_length >= 0, "counts");
}

// What is accepted keeps to every limit.
void CheckAccepted(const RequestSpec& spec) {
  Require(!spec.prompt.empty() && spec.max_new_tokens >= 1, "lengths");
  Require(static_cast<int64_t>(spec.prompt.size()) + spec.max_new_tokens <= 64, "max_seq_len");
  Require(InVocabulary(spec.prompt) && InVocabulary(spec.end_ids), "ids");
  for (const auto& word : spec.stop_sequences) Require(!word.empty() && InVocabulary(word), "stop");
  for (const auto& word : spec.bad_words) Require(!word.empty() && InVocabulary(word), "bad");
  for (const auto& [id, bias] : spec.logit_bias) {
    Require(InVocabulary({id}) && std::isfinite(bias), "bias");
  }
  CheckSampling(spec.sampling);
  Require(spec.num_return_sequences >= 1 && spec.num_return_sequences <= 64, "sequences");
  Require(spec.num_logprobs >= -1 && spec.num_logprobs <= 64, "num_logprobs");
  Require(spec.priority >= 0 && spec.priority <= 9 && spec.deadline > 0, "priority");
  for (const auto& stop : spec.stop_strings) Require(!stop.empty(), "stop_strings");
  for (const auto& range : spec.retention.prompt) {
    Require(range.start >= 0 && range.priority >= 0 && range.priority <= 100, "retention");
  }
}

void CheckRequest(StatusOr<LlmRequest> request) {
  if (!request.ok()) return CheckRefusal(request.status());
  for (RequestSpec& spec : request->rows) {
    const auto made = Request::Create(std::move(spec), Limits());
    if (made.ok()) {
      CheckAccepted(made->spec());
    } else {
      CheckRefusal(made.status());
    }
  }
}

void RunLlm(const uint8_t* data, size_t size) {
  InputBytes in(data, size);
  const size_t kind = in.Byte();
  const bool batched = (kind & 1) == 0;
  const auto spec = UnpackRequest(Role::kLlm, &in);
  const auto request = ReadSpec(spec, batched);
  if (!request.ok()) return CheckRefusal(request.status());
  CheckRequest(ReadLlmRequest(*request, Settings(false, batched, (kind & 2) == 0), kNow));
}

// A tokenizer's answer for each row, from the input.
std::vector<triton::TokenizedRow> UnpackRows(int64_t batch, InputBytes* in) {
  std::vector<triton::TokenizedRow> rows(static_cast<size_t>(std::min<int64_t>(batch, 1000)));
  for (auto& row : rows) {
    row.ids.resize(in->Below(20) + 1);
    for (int32_t& id : row.ids) id = static_cast<int8_t>(in->Byte());
    row.bad_words.resize(in->Below(3));
    for (auto& word : row.bad_words) word.assign(in->Below(3), in->Byte());
    for (size_t left = in->Below(3); left > 0; --left) {
      const auto id = static_cast<int32_t>(in->Byte());
      row.bias.emplace_back(id, in->Value<float>());
    }
  }
  return rows;
}

void RunPipeline(const uint8_t* data, size_t size) {
  InputBytes in(data, size);
  const size_t kind = in.Byte();
  const bool batched = (kind & 1) == 0;
  auto request = ReadSpec(UnpackRequest(Role::kPipeline, &in), batched);
  if (!request.ok()) return CheckRefusal(request.status());
  if (Status s = CheckRequired(Role::kPipeline, *request); !s.ok()) return CheckRefusal(s);
  auto steps = SplitRequest(std::move(*request), batched);
  if (!steps.ok()) return CheckRefusal(steps.status());
  if (Status s = CheckGiven(Role::kTokenize, steps->tokenize); !s.ok()) return CheckRefusal(s);
  if (Status s = CheckGiven(Role::kLlm, steps->llm); !s.ok()) return CheckRefusal(s);
  auto rows = UnpackRows(steps->llm.batch(), &in);
  if (static_cast<int64_t>(rows.size()) != steps->llm.batch()) return;
  auto read = ReadPipelineRequest(steps->llm, std::move(rows),
                                  Settings(true, batched, (kind & 2) == 0), kNow);
  CheckRequest(std::move(read));
}

// Mutations of a request that is refused at its first field reach no other.
void RequireTaken(const std::string& seed) {
  InputBytes in(std::string_view(seed).substr(1));
  const auto request = ReadSpec(UnpackRequest(Role::kLlm, &in), true);
  Require(request.ok(), request.status().message());
  const auto read = ReadLlmRequest(*request, Settings(false, true, true), kNow);
  Require(read.ok(), read.status().message());
}

std::vector<std::string> Seeds(Role role) {
  std::vector<std::string> seeds;
  for (const auto& spec : GoodRequests(role)) {
    OutputBytes seed;
    seed.Byte(0).Raw(PackRequest(role, spec));
    // For UnpackRows: two rows of two ids, one bad word, one bias.
    for (int row = 0; row < 2; ++row) {
      seed.Byte(1).Byte(5).Byte(6).Byte(1).Byte(2).Byte(7).Byte(1).Byte(8).Value(0.5f);
    }
    seeds.push_back(seed.bytes());
    if (role == Role::kLlm) RequireTaken(seeds.back());
  }
  return seeds;
}

}  // namespace

FuzzTarget LlmRequestTarget() {
  return {"llm_request", RunLlm, [] { return Seeds(Role::kLlm); }};
}

FuzzTarget PipelineRequestTarget() {
  return {"pipeline_request", RunPipeline, [] { return Seeds(Role::kPipeline); }};
}

}  // namespace slipstream::fuzz
