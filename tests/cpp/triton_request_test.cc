// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "triton/request_reader.h"
#include "triton_fixture.h"

namespace slipstream::triton {
namespace {

constexpr TimeNs kNow = 1'000'000'000'000;

ReaderSettings Settings() {
  ReaderSettings settings;
  settings.num_declared_outputs = OutputRows(Role::kLlm).size();
  settings.vocab_size = 8;
  settings.end_ids = {2, 3};
  return settings;
}

StatusOr<LlmRequest> Read(RequestBuilder builder, const ReaderSettings& settings = Settings()) {
  auto data = builder.TryBuild(settings.batched);
  if (!data.ok()) return data.status();
  return ReadLlmRequest(*data, settings, kNow);
}

RequestBuilder Plain() {
  RequestBuilder builder;
  builder.Prompt({5, 6, 7}, 4).AllOutputs(Role::kLlm);
  return builder;
}

std::string Error(RequestBuilder builder, StatusCode code,
                  const ReaderSettings& settings = Settings()) {
  const auto request = Read(std::move(builder), settings);
  if (request.ok()) return "no error";
  CHECK(request.status().code() == code);
  return request.status().message();
}

template <typename Change>
SamplingParams Sampling(Change change) {
  RequestBuilder builder = Plain();
  change(builder);
  const auto request = Read(std::move(builder));
  REQUIRE(request.ok());
  return request->rows[0].sampling;
}

TEST_CASE("request: the plain one") {
  const auto request = Read(std::move(Plain().Id("a")));
  REQUIRE(request.ok());
  REQUIRE(request->rows.size() == 1);
  const RequestSpec& row = request->rows[0];
  CHECK(row.client_id == "a");
  CHECK(row.prompt == std::vector<int32_t>{5, 6, 7});
  CHECK(row.max_new_tokens == 4);
  CHECK(row.sampling.temperature == 0.0f);
  CHECK_FALSE(row.sampling.has_seed);
  CHECK(row.end_ids == std::vector<int32_t>{2, 3});
  CHECK(row.deadline == kNever);
  CHECK(row.num_logprobs == -1);
  CHECK_FALSE(row.return_text);
  CHECK(request->plan.echo);
  CHECK_FALSE(request->plan.piped);
  CHECK(request->plan.prompts == std::vector<std::vector<int32_t>>{{5, 6, 7}});
}

TEST_CASE("request: a stop string that is no text is refused by the field's name") {
  RequestSpec spec;
  spec.prompt = {1};
  spec.max_new_tokens = 1;
  spec.stop_strings = {"END", "\xFF"};
  RequestLimits limits;
  limits.vocab_size = 10;
  limits.max_seq_len = limits.kv_capacity_tokens = 10;
  limits.has_token_table = true;
  CHECK(Request::Create(spec, limits).status().message() ==
        "stop_strings: stop string 1 is not valid UTF-8");
}

TEST_CASE("request: all the logits that it returns together are limited") {
  RequestLimits limits;
  limits.vocab_size = 1000;
  limits.max_seq_len = limits.kv_capacity_tokens = 100;
  limits.max_logits_bytes = 4 * 1000 * 30;
  const auto error = [&](bool context, bool generation, int32_t samples) {
    RequestSpec spec;
    spec.prompt = std::vector<int32_t>(20, 1);
    spec.max_new_tokens = 10;
    spec.num_return_sequences = samples;
    spec.sampling.temperature = 1.0f;
    spec.return_context_logits = context;
    spec.return_generation_logits = generation;
    return Request::Create(spec, limits).status().message();
  };
  CHECK(error(true, true, 1).empty());
  CHECK(error(false, true, 3).empty());
  CHECK(error(true, true, 2) ==
        "return_context_logits: 40 rows of logits exceed the limit of 120000 bytes");
  CHECK(error(false, true, 4) ==
        "return_generation_logits: 40 rows of logits exceed the limit of 120000 bytes");
}

TEST_CASE("request: when sampling is random") {
  CHECK(Sampling([](auto& b) { b.Float("temperature", 0.0f); }).temperature == 0.0f);
  CHECK(Sampling([](auto& b) { b.Float("temperature", 0.7f); }).temperature == 0.7f);
  CHECK(Sampling([](auto& b) {
          b.Float("temperature", 0.7f).Int("runtime_top_k", 1);
        }).temperature == 0.0f);
  const auto top_k = Sampling([](auto& b) { b.Int("runtime_top_k", 5); });
  CHECK(top_k.temperature == 1.0f);
  CHECK(top_k.top_k == 5);
  const auto top_p = Sampling([](auto& b) { b.Float("runtime_top_p", 0.9f); });
  CHECK(top_p.temperature == 1.0f);
  CHECK(top_p.top_p == 0.9f);
  const auto unset =
      Sampling([](auto& b) { b.Float("runtime_top_p", 0.0f).Int("runtime_top_k", 0); });
  CHECK(unset.temperature == 0.0f);
  CHECK(unset.top_p == 1.0f);
  CHECK(Sampling([](auto& b) { b.Float("min_p", 0.1f); }).temperature == 1.0f);
  CHECK(Sampling([](auto& b) { b.template Add<uint64_t>("seed", {1, 1}, {0}); }).has_seed);
}

TEST_CASE("request: every other sampling field arrives") {
  const auto s = Sampling([](auto& b) {
    b.Float("runtime_top_p_min", 0.1f).Float("runtime_top_p_decay", 0.5f);
    b.Int("runtime_top_p_reset_ids", 4).Float("repetition_penalty", 1.5f);
    b.Float("presence_penalty", 0.25f).Float("frequency_penalty", -0.5f);
    b.Int("prompt_ignore_length", 2).Int("min_length", 3);
  });
  CHECK(s.top_p_min == 0.1f);
  CHECK(s.top_p_decay == 0.5f);
  CHECK(s.top_p_reset_id == 4);
  CHECK(s.repetition_penalty == 1.5f);
  CHECK(s.presence_penalty == 0.25f);
  CHECK(s.frequency_penalty == -0.5f);
  CHECK(s.prompt_ignore_length == 2);
  CHECK(s.min_tokens == 3);
  CHECK(Error(std::move(Plain().Int("min_length", 3).Int("min_tokens", 4)),
              StatusCode::kInvalidArgument) ==
        "min_length: 3 differs from min_tokens, 4; they are two names of one setting");
}

TEST_CASE("request: padding is stripped, lengths are checked") {
  RequestBuilder padded;
  padded.Add<int32_t>("input_ids", {1, 5}, {5, 6, 0, 0, 0}).Int("input_lengths", 2);
  padded.Int("request_output_len", 1).AllOutputs(Role::kLlm);
  CHECK(Read(std::move(padded))->rows[0].prompt == std::vector<int32_t>{5, 6});

  RequestBuilder longer;
  longer.Add<int32_t>("input_ids", {1, 2}, {5, 6}).Int("input_lengths", 3);
  longer.Int("request_output_len", 1).AllOutputs(Role::kLlm);
  CHECK(Error(std::move(longer), StatusCode::kInvalidArgument) ==
        "input_lengths: 3 is outside 1 .. 2, the number of input_ids");

  RequestBuilder missing;
  missing.Int("input_lengths", 1).Int("request_output_len", 1).AllOutputs(Role::kLlm);
  CHECK(Error(std::move(missing), StatusCode::kInvalidArgument) ==
        "input_ids: this input is required");
}

TEST_CASE("request: a batch becomes rows") {
  RequestBuilder batch;
  batch.Add<int32_t>("input_ids", {2, 3}, {5, 6, 7, 1, 0, 0});
  batch.Add<int32_t>("input_lengths", {2, 1}, {3, 1});
  batch.Add<int32_t>("request_output_len", {2, 1}, {4, 9});
  batch.Add<int32_t>("stop_words_list", {2, 2, 2}, {4, 5, 2, -1, 6, 0, 1, -1});
  batch.AllOutputs(Role::kLlm);
  const auto request = Read(std::move(batch));
  REQUIRE(request.ok());
  REQUIRE(request->rows.size() == 2);
  CHECK(request->rows[1].prompt == std::vector<int32_t>{1});
  CHECK(request->rows[1].max_new_tokens == 9);
  CHECK(request->rows[0].stop_sequences == std::vector<std::vector<int32_t>>{{4, 5}});
  CHECK(request->rows[1].stop_sequences == std::vector<std::vector<int32_t>>{{6}});
  CHECK(request->plan.batch_index);
}

TEST_CASE("request: the ends of a sequence") {
  CHECK(Read(std::move(Plain().Int("end_id", 3)))->rows[0].end_ids == std::vector<int32_t>{3});
  CHECK(Read(std::move(Plain().Int("end_id", -1)))->rows[0].end_ids.empty());
  const auto spec = Read(std::move(Plain()
                                       .Add<int32_t>("bad_words_list", {1, 2, 1}, {7, 1})
                                       .Strings("stop_strings", {"END", ""})
                                       .Bool("include_stop_in_output", true)))
                        ->rows[0];
  CHECK(spec.bad_words == std::vector<std::vector<int32_t>>{{7}});
  CHECK(spec.stop_strings == std::vector<std::string>{"END"});
  CHECK(spec.include_stop);
  CHECK(Error(std::move(Plain().Add<int32_t>("stop_words_list", {1, 2, 1}, {7, 5})),
              StatusCode::kInvalidArgument)
            .find("stop_words_list: out-of-bound offsets") == 0);
}

TEST_CASE("request: bias, retention, salt, priority, deadline") {
  RequestBuilder builder = Plain();
  builder.Add<float>("embedding_bias", {1, 8}, {0, 0, 1.5f, 0, 0, 0, 0, -2});
  builder.Add<int32_t>("retention_token_range_starts", {1, 1}, {0});
  builder.Add<int32_t>("retention_token_range_ends", {1, 1}, {-1});
  builder.Add<int32_t>("retention_token_range_priorities", {1, 1}, {80});
  builder.Int("retention_decode_priority", 10).Int("priority", 4).Int("timeout_ms", 2000);
  builder.Strings("cache_salt", {"tenant"}).Timeout(1'000'000);
  const auto request = Read(std::move(builder));
  REQUIRE(request.ok());
  const RequestSpec& row = request->rows[0];
  CHECK(row.logit_bias == std::vector<std::pair<int32_t, float>>{{2, 1.5f}, {7, -2.0f}});
  REQUIRE(row.retention.prompt.size() == 1);
  CHECK(row.retention.prompt[0].priority == 80);
  CHECK(row.retention.prompt[0].duration_ms == -1);
  CHECK(row.retention.decode_priority == 10);
  CHECK(row.priority == 4);
  CHECK(row.deadline == kNow + 1'000'000'000);  // Triton's own timeout is the earlier one
  CHECK(row.cache_salt == HashCacheSalt("tenant"));
  CHECK(row.cache_salt != HashCacheSalt("tenanu"));
  CHECK(HashCacheSalt("") == 0);
  CHECK(Read(std::move(Plain().Parameter("cache_salt", "tenant").Parameter("priority", "7")))
            ->rows[0]
            .priority == 7);
}

TEST_CASE("request: bad values name the field") {
  const auto invalid = StatusCode::kInvalidArgument;
  CHECK(Error(std::move(Plain().Add<float>("embedding_bias", {1, 9}, std::vector<float>(9))),
              invalid) == "embedding_bias: has 9 values, the vocabulary has 8");
  CHECK(Error(std::move(Plain().Add<float>("embedding_bias", {1, 2}, {0, NAN})), invalid) ==
        "embedding_bias: the value of token 1 is not finite");
  CHECK(Error(std::move(Plain().Int("pad_id", -2)), invalid) == "pad_id: -2 must be at least -1");
  CHECK(Read(std::move(Plain().Int("pad_id", 8))).ok());  // beyond the vocabulary
  CHECK(Error(std::move(Plain().Int("timeout_ms", 0)), invalid) ==
        "timeout_ms: 0 must be at least 1");
  CHECK(Error(std::move(Plain().Int("temperature", 1)), invalid) ==
        "temperature: has type INT32, must be FP32");
  CHECK(Error(std::move(Plain().Add<float>("temperature", {1, 2}, {1, 2})), invalid) ==
        "temperature: shape [1,2] has 2 values per request, must have 1");
  CHECK(Error(std::move(Plain().Parameter("priority", "high")), invalid) ==
        "priority: 'high' is not a whole number in 0 .. 9");
  CHECK(Error(std::move(Plain().Add<int32_t>("retention_token_range_starts", {1, 1}, {0})),
              invalid) ==
        "retention_token_range_ends: has 0 values, retention_token_range_starts has 1");
  CHECK(Error(std::move(Plain().Int("no_such_field", 1)), invalid) ==
        "no_such_field: role llm has no such input");
  CHECK(Error(std::move(Plain().Parameter("request_type", "mixed")), invalid)
            .find("request_type: 'mixed'") == 0);
}

TEST_CASE("request: what is not served is refused by name, what asks for nothing is accepted") {
  const auto unsupported = StatusCode::kUnsupported;
  for (const TensorRow& row : InputRows(Role::kLlm)) {
    if (row.use != Use::kRefused) continue;
    RequestBuilder builder = Plain();
    builder.Add({row.name, TRITONSERVER_TYPE_UINT8, {1, 1}, "x"});
    CHECK(Error(std::move(builder), unsupported).find(std::string(row.name) + ": not supported,") ==
          0);
    RequestBuilder empty = Plain();
    empty.Add({row.name, TRITONSERVER_TYPE_UINT8, {1, 0}, ""});
    CHECK(Read(std::move(empty)).ok());
  }
  CHECK(Error(std::move(Plain().Int("beam_width", 4)), unsupported) ==
        "beam_width: 4 is not supported, must be 1 (no support for beam search)");
  CHECK(Error(std::move(Plain().Float("len_penalty", 0.5f)), unsupported) ==
        "len_penalty: 0.5 is not supported, must be 0 or 1 (no support for beam search)");
  CHECK(Read(std::move(Plain().Int("beam_width", 1).Float("len_penalty", 1.0f))).ok());
  CHECK(Read(std::move(Plain().Bool("early_stopping", true))).ok());  // its older type
  CHECK(Error(std::move(Plain().Parameter("request_type", "context_only")), unsupported)
            .find("request_type: 'context_only' is not supported") == 0);
}

TEST_CASE("request: requested outputs") {
  RequestBuilder some;
  some.Prompt({1}, 1).Outputs({"sequence_length", "text_output"});
  CHECK(Error(std::move(some), StatusCode::kInvalidArgument) ==
        "output_ids tensor must be present in list of output tensors");

  RequestBuilder listed;
  listed.Prompt({1}, 1).Outputs({"output_ids", "sequence_length", "cum_log_probs"});
  listed.Bool("return_log_probs", true).Bool("return_perf_metrics", true);
  const auto plan = Read(std::move(listed))->plan;
  CHECK(plan.cum_log_probs);
  CHECK_FALSE(plan.output_log_probs);  // asked for, not listed
  CHECK(plan.perf.empty());

  const auto unasked = Read(Plain())->plan;  // listed, not asked for
  CHECK_FALSE(unasked.cum_log_probs);
  const auto perf = Read(std::move(Plain().Bool("return_perf_metrics", true)))->plan;
  CHECK(perf.perf.size() == 10);
  CHECK(Read(std::move(Plain().Bool("return_kv_cache_reuse_stats", true)))->plan.perf.size() == 3);
}

TEST_CASE("request: log probabilities") {
  const auto logprobs = [](bool flag, int32_t alternatives) {
    return Read(std::move(Plain().Bool("return_log_probs", flag).Int("num_logprobs", alternatives)))
        ->rows[0]
        .num_logprobs;
  };
  CHECK(logprobs(false, 0) == -1);
  CHECK(logprobs(true, 0) == 0);
  CHECK(logprobs(false, 3) == 3);
  CHECK(logprobs(true, 3) == 3);
}

TEST_CASE("request: a stop needs only its id") {
  RequestBuilder stop;
  stop.Add<int32_t>("input_ids", {1, 1}, {-77}).Int("input_lengths", 0);
  stop.Int("request_output_len", 0).Bool("stop", true).Id("x");
  CHECK(Read(std::move(stop))->stop);
  RequestBuilder nameless;
  nameless.Bool("stop", true);
  CHECK(Error(std::move(nameless), StatusCode::kInternal) ==
        "Trying to stop a request but request ID is not provided");
}

TEST_CASE("request: what needs the decoupled policy") {
  ReaderSettings settings = Settings();
  settings.decoupled = false;
  const auto invalid = StatusCode::kInvalidArgument;
  CHECK(Error(std::move(Plain().Bool("streaming", true)), invalid, settings) ==
        "Streaming is only supported if model is deployed using decoupled mode.");
  RequestBuilder batch;
  batch.Add<int32_t>("input_ids", {2, 1}, {1, 1}).Add<int32_t>("input_lengths", {2, 1}, {1, 1});
  batch.Add<int32_t>("request_output_len", {2, 1}, {1, 1}).AllOutputs(Role::kLlm);
  CHECK(
      Error(std::move(batch), invalid, settings) ==
      "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy");
  CHECK(Error(std::move(Plain().Int("num_return_sequences", 2)), invalid, settings)
            .find("num_return_sequences: 2 requires") == 0);
  CHECK(Read(Plain(), settings).ok());
}

TEST_CASE("request: an ensemble names flow among its outputs") {
  ReaderSettings settings = Settings();
  RequestBuilder piped;
  piped.Prompt({1}, 1).Outputs({"output_ids", "sequence_length", "flow"}).Int("end_id", 2);
  const auto request = Read(std::move(piped), settings);
  REQUIRE(request.ok());
  CHECK(request->plan.piped);
  // The tokenizer's end id stands for all of the checkpoint's.
  CHECK(request->rows[0].end_ids == std::vector<int32_t>{2, 3});
}

// Token 0 is "a".
std::shared_ptr<const TokenTable> AsciiTable() {
  const auto binary = [](const std::string& bytes) {
    return nlohmann::json::binary(std::vector<uint8_t>(bytes.begin(), bytes.end()));
  };
  const auto blob =
      nlohmann::json::to_msgpack({{"format", "slipstream.token_table"},
                                  {"version", 1},
                                  {"joiner", "concat"},
                                  {"count", 1},
                                  {"flags", binary("\1")},
                                  {"offsets", binary(std::string("\0\0\0\0\1\0\0\0", 8))},
                                  {"data", binary("a")}});
  auto table = TokenTable::FromMsgpack({reinterpret_cast<const char*>(blob.data()), blob.size()});
  REQUIRE_MESSAGE(table.ok(), table.status().message());
  return *table;
}

TEST_CASE("request: flow alone is enough for an ensemble of a model with a tokenizer") {
  ReaderSettings settings = Settings();
  const auto read = [&] {
    RequestBuilder piped;
    piped.Prompt({1}, 1).Outputs({"flow"});
    return Read(std::move(piped), settings);
  };
  CHECK(read().status().code() == StatusCode::kUnsupported);
  CHECK(read().status().message().find("flow: carries no text") == 0);
  settings.token_table = AsciiTable();
  const auto request = read();
  REQUIRE(request.ok());
  CHECK(request->plan.text);
  CHECK_FALSE(request->plan.ids);
  CHECK_FALSE(request->plan.text_output);
  CHECK(request->rows[0].return_text);
}

TEST_CASE("request data: tensors must be what they say") {
  const auto error = [](host::Output tensor) {
    RequestBuilder builder;
    builder.Add(std::move(tensor));
    return builder.TryBuild().status().message();
  };
  CHECK(error({"a", TRITONSERVER_TYPE_INT32, {1, 2}, "abc"}) ==
        "a: 3 bytes given, shape [1,2] of INT32 has 8");
  CHECK(error({"a", TRITONSERVER_TYPE_INT32, {1, -1}, ""}) == "a: impossible shape [1,-1]");
  CHECK(error({"a", TRITONSERVER_TYPE_INT32, {}, "abcd"}) ==
        "a: shape [] has no batch dimension; it must be at least 1");
  RequestBuilder uneven;
  uneven.Add<int32_t>("a", {1, 1}, {1}).Add<int32_t>("b", {2, 1}, {1, 2});
  CHECK(uneven.TryBuild().status().message() == "b: shape [2,1] has batch 2, other inputs have 1");
}

TEST_CASE("request data: strings are bounds-checked") {
  const auto strings = [](const std::string& bytes, int64_t count) {
    RequestBuilder builder;
    builder.Add({"s", TRITONSERVER_TYPE_BYTES, {1, count}, bytes});
    return builder.Build().StringRow("s", 0);
  };
  CHECK(*strings(SerializeBytesTensor({"a", "", "bc"}), 3) ==
        std::vector<std::string>{"a", "", "bc"});
  CHECK(strings(std::string("\x05\0\0\0ab", 6), 1).status().message() ==
        "s: element 0 claims 5 bytes, 2 are left");
  CHECK(strings(std::string("\x01\0", 2), 1).status().message() ==
        "s: the data of 2 bytes ends in element 0 of 1");
  CHECK(strings(SerializeBytesTensor({"a", "b"}), 1).status().message() ==
        "s: 5 bytes follow the 1 elements of shape [1,1]");
}

TEST_CASE("declarations: names and types must be the interface's") {
  const std::vector<DeclaredTensor> inputs = {{"TOKENS_BATCH", "INT32"},
                                              {"SEQUENCE_LENGTH", "INT32"}};
  CHECK(CheckDeclaration(Role::kDetokenize, inputs, {{"OUTPUT", "STRING"}}).ok());
  CHECK(CheckDeclaration(Role::kDetokenize, inputs, {{"OUTPT", "STRING"}}).message() ==
        "output 'OUTPT': role detokenize has none of this name; the nearest is 'OUTPUT'");
  CHECK(CheckDeclaration(Role::kDetokenize, inputs, {{"OUTPUT", "INT32"}}).message() ==
        "output 'OUTPUT': declared TYPE_INT32, must be TYPE_STRING");
  CHECK(CheckDeclaration(Role::kLlm, {{"input_lengths", "INT32"}}, {}).message() ==
        "input 'request_output_len': role llm needs it declared");
}

TEST_CASE("request: a pipeline's tokens come from the tokenizer") {
  ReaderSettings settings = Settings();
  settings.pipeline = true;
  TokenizedRow tokenized;
  tokenized.ids = {5, 6};
  tokenized.bad_words = {{4}, {}, {1, 2}};
  tokenized.bias = {{7, 1.5f}, {3, 1.0f}, {7, 0.5f}, {3, -1.0f}};
  const auto read = [&](int32_t end_id) {
    RequestBuilder builder;
    builder.Int("request_output_len", 4).Int("end_id", end_id);
    builder.Outputs({"finish_reason", "cum_log_probs"});
    return ReadPipelineRequest(builder.Build(), {tokenized}, settings, kNow);
  };
  const auto request = read(3);
  REQUIRE(request.ok());
  CHECK_FALSE(request->plan.ids);
  CHECK_FALSE(request->plan.piped);
  const RequestSpec& spec = request->rows[0];
  CHECK(spec.prompt == std::vector<int32_t>{5, 6});
  CHECK(spec.bad_words == WordList{{4}, {1, 2}});
  CHECK(spec.logit_bias == std::vector<std::pair<int32_t, float>>{{7, 2.0f}});
  CHECK(spec.end_ids == std::vector<int32_t>{2, 3});  // one of the model's own stands for all
  CHECK(read(5)->rows[0].end_ids == std::vector<int32_t>{5});

  tokenized.bias = {{9, 1.0f}};
  CHECK(read(3).status().message() ==
        "embedding_bias: token 9 is beyond the vocabulary, which has 8");
  tokenized.bias = {{1, std::numeric_limits<float>::infinity()}};
  CHECK(read(3).status().message() == "embedding_bias: the value of token 1 is not finite");
}

}  // namespace
}  // namespace slipstream::triton
