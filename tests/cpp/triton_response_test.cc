// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "triton/flow_registry.h"
#include "triton/response_builder.h"
#include "triton_host.h"

namespace slipstream::triton {
namespace {

Event Tokens(std::vector<int32_t> tokens, std::string text = "") {
  Event event;
  event.tokens = std::move(tokens);
  event.text = std::move(text);
  event.usage = {3, static_cast<int32_t>(event.tokens.size()), 1};
  return event;
}

template <typename T>
std::vector<T> Values(const OutputTensor& tensor) {
  std::vector<T> values(tensor.data.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

const OutputTensor* Find(const std::vector<OutputTensor>& outputs, const std::string& name) {
  for (const OutputTensor& output : outputs) {
    if (name == output.name) return &output;
  }
  return nullptr;
}

ResponsePlan Batched() {
  ResponsePlan plan;
  plan.batched = true;
  return plan;
}

TEST_CASE("response: ids and length come first, with batch and beam dimensions") {
  const auto outputs = BuildOutputs(Batched(), 0, Tokens({7, 8}));
  REQUIRE(outputs.size() == 2);
  CHECK(std::string(outputs[0].name) == "output_ids");
  CHECK(outputs[0].shape == std::vector<int64_t>{1, 1, 2});
  CHECK(Values<int32_t>(outputs[0]) == std::vector<int32_t>{7, 8});
  CHECK(std::string(outputs[1].name) == "sequence_length");
  CHECK(outputs[1].shape == std::vector<int64_t>{1, 1});
  CHECK(Values<int32_t>(outputs[1]) == std::vector<int32_t>{2});
  CHECK(BuildOutputs(ResponsePlan(), 0, Tokens({7}))[0].shape == std::vector<int64_t>{1, 1});
}

TEST_CASE("response: the prompt is repeated unless it is excluded") {
  ResponsePlan plan = Batched();
  plan.echo = true;
  plan.num_output_tokens = true;
  plan.prompts = {{1, 2, 3}, {4}};
  const auto outputs = BuildOutputs(plan, 1, Tokens({7, 8}));
  CHECK(Values<int32_t>(outputs[0]) == std::vector<int32_t>{4, 7, 8});
  CHECK(Values<int32_t>(outputs[1]) == std::vector<int32_t>{3});
  CHECK(Values<int32_t>(*Find(outputs, "num_output_tokens")) == std::vector<int32_t>{3});
}

TEST_CASE("response: log probabilities, chosen and alternatives") {
  ResponsePlan plan = Batched();
  plan.cum_log_probs = plan.output_log_probs = plan.top_log_probs = plan.top_log_prob_ids = true;
  Event event = Tokens({7, 8});
  event.cum_logprob = -3;
  event.logprobs = {3, {7, 7, 1, 8, 2, 8}, {-1, -1, -4, -2, -0.5f, -2}};
  const auto outputs = BuildOutputs(plan, 0, std::move(event));
  CHECK(Values<float>(*Find(outputs, "cum_log_probs")) == std::vector<float>{-3});
  CHECK(Find(outputs, "cum_log_probs")->shape == std::vector<int64_t>{1, 1});
  CHECK(Values<float>(*Find(outputs, "output_log_probs")) == std::vector<float>{-1, -2});
  CHECK(Find(outputs, "output_log_probs")->shape == std::vector<int64_t>{1, 1, 2});
  CHECK(Values<float>(*Find(outputs, "top_log_probs")) == std::vector<float>{-1, -4, -0.5f, -2});
  CHECK(Values<int32_t>(*Find(outputs, "top_log_prob_ids")) == std::vector<int32_t>{7, 1, 2, 8});
  CHECK(Find(outputs, "top_log_probs")->shape == std::vector<int64_t>{1, 2, 2});
}

TEST_CASE("response: logits in either type") {
  ResponsePlan plan = Batched();
  plan.context_logits = plan.generation_logits = true;
  plan.generation_logits_dtype = TRITONSERVER_TYPE_FP16;
  Event event = Tokens({7});
  event.context_logits = {1, 2, 3, 4, 5, 6};
  event.generation_logits = {1, -2};
  const auto outputs = BuildOutputs(plan, 0, std::move(event));
  CHECK(Find(outputs, "context_logits")->shape == std::vector<int64_t>{1, 3, 2});
  CHECK(Find(outputs, "generation_logits")->shape == std::vector<int64_t>{1, 1, 1, 2});
  CHECK(Find(outputs, "generation_logits")->dtype == TRITONSERVER_TYPE_FP16);
  CHECK(Values<uint16_t>(*Find(outputs, "generation_logits")) ==
        std::vector<uint16_t>{0x3c00, 0xc000});
}

TEST_CASE("response: how a sequence ended is said once") {
  ResponsePlan plan = Batched();
  plan.finish_reason = plan.stop_reason = plan.completion_tokens = plan.cached_tokens = true;
  Event event = Tokens({7});
  CHECK(Find(BuildOutputs(plan, 0, Event(event)), "finish_reason") == nullptr);
  event.reason = FinishReason::kStopSequence;
  event.stop_reason = "END";
  const auto outputs = BuildOutputs(plan, 0, std::move(event));
  CHECK(Find(outputs, "finish_reason")->data == SerializeBytesTensor({"stop_sequence"}));
  CHECK(Find(outputs, "stop_reason")->data == SerializeBytesTensor({"END"}));
  CHECK(Values<int32_t>(*Find(outputs, "completion_tokens")) == std::vector<int32_t>{1});
  CHECK(Values<int32_t>(*Find(outputs, "cached_tokens")) == std::vector<int32_t>{1});
}

TEST_CASE("response: a stopped sequence is empty, but whole for the later steps of an ensemble") {
  ResponsePlan plan = Batched();
  Event event = Tokens({7});
  event.reason = FinishReason::kCancelled;
  CHECK(BuildStoppedOutputs(plan, 0, Event(event)).empty());
  plan.piped = plan.text = true;
  plan.flow = 9;
  const auto outputs = BuildStoppedOutputs(plan, 0, std::move(event));
  CHECK(outputs[0].shape == std::vector<int64_t>{1, 1, 0});
  CHECK(Values<int32_t>(outputs[1]) == std::vector<int32_t>{0});
  CHECK(Find(outputs, "text_output") == nullptr);
  CHECK(Find(outputs, "flow")->shape == std::vector<int64_t>{1, 2});
  CHECK(Find(outputs, "flow")->data == SerializeBytesTensor({FlowKey(9), ""}));
}

TEST_CASE("response: an ensemble that asks only for flow gets its text in it, and nothing else") {
  ResponsePlan plan = Batched();
  plan.piped = plan.text = true;
  plan.ids = false;
  plan.flow = 7;
  const auto outputs = BuildOutputs(plan, 0, Tokens({1, 2}, "ab"));
  REQUIRE(outputs.size() == 1);
  CHECK(outputs[0].data == SerializeBytesTensor({FlowKey(7), "ab"}));
  plan.text = false;
  CHECK(BuildOutputs(plan, 0, Tokens({1}))[0].data == SerializeBytesTensor({FlowKey(7)}));
}

TEST_CASE("response: events merge as if they had been one") {
  Event first = Tokens({1, 2}, "ab");
  first.logprobs = {1, {1, 2}, {-1, -2}};
  first.context_logits = {5};
  first.generation_logits = {6, 7};
  Event second = Tokens({3}, "c");
  second.logprobs = {1, {3}, {-3}};
  second.cum_logprob = -6;
  second.generation_logits = {8};
  second.reason = FinishReason::kLength;
  second.request_done = true;
  MergeEvent(std::move(second), &first);
  CHECK(first.tokens == std::vector<int32_t>{1, 2, 3});
  CHECK(first.text == "abc");
  CHECK(first.logprobs.ids == std::vector<int32_t>{1, 2, 3});
  CHECK(first.logprobs.values == std::vector<float>{-1, -2, -3});
  CHECK(first.cum_logprob == -6);
  CHECK(first.context_logits == std::vector<float>{5});
  CHECK(first.generation_logits == std::vector<float>{6, 7, 8});
  CHECK(first.reason == FinishReason::kLength);
  CHECK(first.request_done);
}

TEST_CASE("half precision: rounds to nearest even, keeps infinities and subnormals") {
  CHECK(FloatToHalf(0.0f) == 0x0000);
  CHECK(FloatToHalf(-0.0f) == 0x8000);
  CHECK(FloatToHalf(1.0f) == 0x3c00);
  CHECK(FloatToHalf(65504.0f) == 0x7bff);
  CHECK(FloatToHalf(65519.0f) == 0x7bff);
  CHECK(FloatToHalf(65520.0f) == 0x7c00);
  CHECK(FloatToHalf(-std::numeric_limits<float>::infinity()) == 0xfc00);
  CHECK((FloatToHalf(NAN) & 0x7fff) > 0x7c00);
  CHECK(FloatToHalf(1.0f + 1.0f / 2048) == 0x3c00);     // tie to even
  CHECK(FloatToHalf(1.0f + 3.0f / 2048) == 0x3c02);     // tie to even, upwards
  CHECK(FloatToHalf(std::ldexp(1.0f, -24)) == 0x0001);  // smallest subnormal
  CHECK(FloatToHalf(std::ldexp(1.0f, -25)) == 0x0000);  // tie to even
  CHECK(FloatToHalf(std::ldexp(1.5f, -25)) == 0x0001);
  CHECK(FloatToHalf(std::ldexp(1.0f, -14)) == 0x0400);  // smallest normal
}

}  // namespace
}  // namespace slipstream::triton
