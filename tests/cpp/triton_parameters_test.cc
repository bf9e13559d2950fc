// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "triton/model_config.h"
#include "triton/parameter_table.h"
#include "triton/parameters.h"

namespace slipstream::triton {
namespace {

std::string Error(const ParameterMap& map) {
  const auto parameters = LlmParameters::FromMap(map);
  return parameters.ok() ? "" : parameters.status().message();
}

TEST_CASE("parameters: TensorRT-LLM keys set what our own names set") {
  const auto theirs = LlmParameters::FromMap({{"gpt_model_type", "inflight_fused_batching"},
                                              {"gpt_model_path", "/models/a"},
                                              {"max_tokens_in_paged_kv_cache", "8192"},
                                              {"kv_cache_free_gpu_mem_fraction", "0.5"},
                                              {"enable_kv_cache_reuse", "False"},
                                              {"enable_chunked_context", "TRUE"},
                                              {"batch_scheduler_policy", "max_utilization"},
                                              {"gpu_device_ids", "3"},
                                              {"cuda_graph_mode", "False"},
                                              {"exclude_input_in_output", "1"}});
  const auto ours = LlmParameters::FromMap({{"model", "/models/a"},
                                            {"kv_cache_tokens", "8192"},
                                            {"kv_cache_fraction", "0.5"},
                                            {"enable_prefix_reuse", "false"},
                                            {"enable_chunked_prefill", "true"},
                                            {"scheduler_policy", "max_utilization"},
                                            {"device", "cuda:3"},
                                            {"cuda_graphs", "false"},
                                            {"exclude_input_in_output", "true"}});
  REQUIRE(theirs.ok());
  REQUIRE(ours.ok());
  for (const auto* p : {&*theirs, &*ours}) {
    CHECK(p->worker.model == "/models/a");
    CHECK(p->worker.kv_cache_tokens == 8192);
    CHECK(p->worker.kv_cache_fraction == 0.5);
    CHECK(p->worker.device == "cuda:3");
    CHECK_FALSE(p->worker.cuda_graphs);
    CHECK_FALSE(p->executor.enable_prefix_reuse);
    CHECK(p->executor.enable_chunked_prefill);
    CHECK(p->executor.policy == SchedulerPolicy::kMaxUtilization);
    CHECK(p->exclude_input_in_output);
    CHECK(p->without_effect.empty());
  }
}

TEST_CASE("parameters: two names of one setting must agree") {
  CHECK(Error({{"model", "/a"}, {"gpt_model_path", "/a"}}).empty());
  CHECK(Error({{"model", "/a"}, {"gpt_model_path", "/b"}}) ==
        "parameters gpt_model_path and model are the same setting, but have different values: '/b' "
        "and '/a'");
  CHECK(Error({{"model", "/a"}, {"cuda_graphs", "true"}, {"cuda_graph_mode", "true"}}).empty());
  CHECK(Error({{"model", "/a"}, {"cuda_graphs", "true"}, {"cuda_graph_mode", "false"}}) ==
        "parameters cuda_graph_mode and cuda_graphs are the same setting, but have different "
        "values: 'false' and 'true'");
  CHECK(LlmParameters::FromMap({{"model", "/a"}, {"cuda_graph_mode", "true"}})->worker.cuda_graphs);
}

TEST_CASE("parameters: two names of one setting are compared by value") {
  const auto agree = [](const std::string& key, const std::string& value, const std::string& other,
                        const std::string& same) {
    return Error({{"model", "/a"}, {key, value}, {other, same}});
  };
  CHECK(agree("cuda_graphs", "true", "cuda_graph_mode", "True").empty());
  CHECK(agree("enable_prefix_reuse", "0", "enable_kv_cache_reuse", " FALSE ").empty());
  CHECK(agree("kv_cache_fraction", "0.9", "kv_cache_free_gpu_mem_fraction", "0.90").empty());
  CHECK(agree("kv_cache_fraction", "1", "kv_cache_free_gpu_mem_fraction", "1.0").empty());
  CHECK(agree("kv_cache_tokens", "8192", "max_tokens_in_paged_kv_cache", "08192 ").empty());
  CHECK(agree("device", "cuda:3", "gpu_device_ids", "3").empty());
  CHECK(agree("scheduler_policy", "max_utilization", "batch_scheduler_policy", "max_utilization ")
            .empty());
  CHECK(agree("gpt_model_type", "inflight_fused_batching", "batching_strategy", "inflight_batching")
            .empty());
  CHECK(agree("kv_cache_fraction", "0.9", "kv_cache_free_gpu_mem_fraction", "0.9000001") ==
        "parameters kv_cache_fraction and kv_cache_free_gpu_mem_fraction are the same setting, but "
        "have different values: '0.9' and '0.9000001'");
  CHECK(agree("device", "cuda", "gpu_device_ids", "0") ==
        "parameters device and gpu_device_ids are the same setting, but have different values: "
        "'cuda' and '0'");
  CHECK(agree("cuda_graphs", "true", "cuda_graph_mode", "yes") ==
        "parameter cuda_graph_mode: 'yes' is none of true, false, 1, 0");
}

TEST_CASE("parameters: bad values name the key, the value and what is allowed") {
  CHECK(Error({{"model", "m"}, {"max_num_seqs", "many"}}) ==
        "parameter max_num_seqs: 'many' is not a whole number; allowed: 0 .. 65536");
  CHECK(ParseInt("n", std::string("5\0x", 3), 1, 9).status().code() ==
        StatusCode::kInvalidArgument);
  CHECK(Error({{"model", "m"}, {"max_num_seqs", "-1"}}) ==
        "parameter max_num_seqs: '-1' is outside 0 .. 65536");
  CHECK(Error({{"model", "m"}, {"exit_on_fatal", "yes"}}) ==
        "parameter exit_on_fatal: 'yes' is none of true, false, 1, 0");
  CHECK(Error({{"model", "m"}, {"scheduler_policy", "best"}}) ==
        "parameter scheduler_policy: 'best' is none of guaranteed_no_evict, max_utilization");
  CHECK(Error({{"model", "m"}, {"kv_cache_dtype", "fp4"}}) ==
        "parameter kv_cache_dtype: 'fp4' is none of auto, fp8");
  CHECK(Error({{"model", "m"}, {"kv_cache_dtype", "fp8"}}).empty());
  CHECK(Error({{"model", "m"}, {"attention_backend", "xqa"}}) ==
        "parameter attention_backend: 'xqa' is none of auto, triton, flashinfer, sdpa");
  CHECK(Error({{"model", "m"}, {"attention_backend", "flashinfer"}}).empty());
  CHECK(Error({{"model", "m"}, {"kv_cache_fracton", "0.9"}}) ==
        "parameter kv_cache_fracton: unknown; the nearest known one is kv_cache_fraction");
  CHECK(Error({{"worker", "process"}}).find("parameter model (or gpt_model_path): not set") == 0);
}

TEST_CASE("parameters: static batching and what is not served are refused") {
  CHECK(Error({{"model", "m"}, {"gpt_model_type", "V1"}}).find("Invalid gpt_model_type") !=
        std::string::npos);
  CHECK(Error({{"model", "m"}, {"max_beam_width", "4"}}) ==
        "parameter max_beam_width: 4 is not supported, must be 1 (no support for beam search)");
  const auto lora = LlmParameters::FromMap({{"model", "m"}, {"lora_prefetch_dir", "/x"}});
  REQUIRE_FALSE(lora.ok());
  CHECK(lora.status().code() == StatusCode::kUnsupported);
  CHECK(Error({{"model", "m"}, {"max_beam_width", "1"}, {"sink_token_length", "0"}}).empty());
}

TEST_CASE("parameters: keys without a counterpart are accepted and listed") {
  const auto p = LlmParameters::FromMap(
      {{"model", "m"}, {"multi_block_mode", "true"}, {"enable_trt_overlap", "false"}});
  REQUIRE(p.ok());
  CHECK(p->without_effect ==
        std::vector<std::string>{"enable_trt_overlap (steps overlap by pipeline_depth)",
                                 "multi_block_mode (the attention kernel decides)"});
}

TEST_CASE("parameters: attention windows are a list") {
  const auto p =
      LlmParameters::FromMap({{"model", "m"}, {"max_attention_window_size", "2560,4096"}});
  REQUIRE(p.ok());
  CHECK(p->attention_windows == std::vector<int64_t>{2560, 4096});
  CHECK_FALSE(LlmParameters::FromMap({{"model", "m"}, {"max_attention_window_size", "1,,2"}}).ok());
}

TEST_CASE("parameters: the llm takes a tokenizer, by either name") {
  for (const char* key : {"tokenizer", "tokenizer_dir"}) {
    const auto p = LlmParameters::FromMap({{"model", "m"}, {key, "/t"}});
    REQUIRE(p.ok());
    CHECK(p->worker.tokenizer == "/t");
    CHECK(p->without_effect.empty());
  }
}

TEST_CASE("parameters: the tokenizer roles") {
  const auto t = TokenizeParameters::FromMap(
      {{"role", "tokenize"}, {"tokenizer_dir", "/t"}, {"tokenizer_processes", "3"}});
  REQUIRE(t.ok());
  CHECK(t->tokenizer.tokenizer == "/t");
  CHECK(t->tokenizer_processes == 3);
  CHECK(t->add_special_tokens);
  CHECK_FALSE(TokenizeParameters::FromMap({}).ok());
  const auto d =
      DetokenizeParameters::FromMap({{"tokenizer_dir", "/t"}, {"skip_special_tokens", "false"}});
  REQUIRE(d.ok());
  CHECK_FALSE(d->skip_special_tokens);
  CHECK_FALSE(LlmParameters::FromMap({{"model", "m"}})->skip_special_tokens.has_value());
  const auto l = LlmParameters::FromMap({{"model", "m"}, {"skip_special_tokens", "false"}});
  CHECK(l->skip_special_tokens == false);
}

TEST_CASE("model config: empty values and unfilled placeholders mean unset") {
  const auto config = ModelConfig::FromJson(R"({
    "name": "llm", "max_batch_size": 8, "model_transaction_policy": {"decoupled": true},
    "input": [{"name": "input_ids", "data_type": "TYPE_INT32", "dims": ["-1"]}],
    "output": [{"name": "output_ids", "data_type": "TYPE_INT32", "dims": ["-1", "-1"]}],
    "instance_group": [{"count": 2}, {"count": 1}],
    "dynamic_batching": {"preserve_ordering": true},
    "parameters": {"role": {"string_value": "llm"}, "model": {"string_value": "${engine_dir}"},
                   "device": {"string_value": "  "}, "dtype": {"string_value": "auto"}}})");
  REQUIRE(config.ok());
  CHECK(config->name == "llm");
  CHECK(config->batched);
  CHECK(config->decoupled);
  CHECK(config->dynamic_batching);
  CHECK(config->preserve_ordering);
  CHECK(config->instance_count == 3);
  CHECK(config->inputs[0].dtype == "INT32");
  CHECK(config->parameters == ParameterMap{{"role", "llm"}, {"dtype", "auto"}});
  CHECK_FALSE(ModelConfig::FromJson("{").ok());
  const auto error = [](const std::string& groups) {
    return ModelConfig::FromJson(R"({"instance_group": )" + groups + "}").status().message();
  };
  CHECK(error(R"([{"count": 4294967296}])") ==
        "model configuration: count is 4294967296, which is no int32");
  CHECK(error(R"([{"count": "-2147483649"}])") ==
        "model configuration: count is \"-2147483649\", which is no int32");
  CHECK(error(R"([{"count": 2147483647}, {"count": 1}])") ==
        "model configuration: instance_group has 2147483648 instances");
}

}  // namespace
}  // namespace slipstream::triton
