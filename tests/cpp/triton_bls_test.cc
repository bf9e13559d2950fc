// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// Role `pipeline` as `tensorrt_llm_bls`: inputs and parameters that the ensemble does not have.

#include <doctest/doctest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "triton/delivery.h"
#include "triton/request_reader.h"
#include "triton_fixture.h"
#include "triton_host.h"
#include "triton_models.h"

namespace slipstream::triton {
namespace {

// As a deploy script leaves it: without a tokenizer.
std::unique_ptr<Model> Bls(ParameterMap more = {}, TRITONSERVER_Server* server = nullptr) {
  more.insert({{"role", "pipeline"}, {"python_executable", kThisBinary}});
  return Load(Role::kPipeline, "tensorrt_llm_bls", true, server, std::move(more));
}

std::string LoadError(ParameterMap parameters) {
  ModelConfig config = Declared(Role::kPipeline, "tensorrt_llm_bls");
  parameters["role"] = "pipeline";
  config.parameters = std::move(parameters);
  const auto model = Model::Create(std::move(config));
  return model.ok() ? "" : model.status().message();
}

TEST_CASE("bls: serves like the ensemble, with the tokenizer of its llm") {
  const auto llm = Llm("{}", true, {{"tokenizer", "double"}}, nullptr, "tensorrt_llm");
  const auto bls = Bls({{"llm_model_name", "other"}, {"tensorrt_llm_model_name", "tensorrt_llm"}});
  CHECK(bls->Ready().ok());
  auto spec = AskText("fox", 10);
  spec.inputs.push_back(host::In<int32_t>("num_draft_tokens", {1, 1}, {0}));
  spec.inputs.push_back(host::InBool("use_draft_logits", false));
  const auto client = Send(bls.get(), spec);
  const host::Response last = client->WaitFinal().back();
  CHECK(last.Find("prompt_tokens")->As<int32_t>()[0] == 3);
  CHECK(last.Find("completion_tokens")->As<int32_t>()[0] == 10);
  CheckClean({client});
}

TEST_CASE("bls: what is not served is refused by its name") {
  const auto llm = Llm("{}", true, {{"tokenizer", "double"}});
  const auto bls = Bls();
  const auto error = [&](host::Output input) {
    auto spec = AskText("fox", 4);
    spec.inputs.push_back(std::move(input));
    const auto client = Send(bls.get(), spec);
    const auto found = client->WaitFinal().back().error;
    CheckClean({client});
    REQUIRE(static_cast<bool>(found));
    CHECK(found->first == TRITONSERVER_ERROR_UNSUPPORTED);
    return found->second;
  };
  CHECK(error(host::In<int32_t>("num_draft_tokens", {1, 1}, {4})) ==
        "num_draft_tokens: 4 is not supported, must be 0 (no support for draft tokens)");
  CHECK(error(host::InBool("use_draft_logits", true)) ==
        "use_draft_logits: 1 is not supported, must be 0 (no support for draft tokens)");
  const std::string images =
      ": not supported, leave this input out (no support for multimodal inputs)";
  CHECK(error(host::In<uint16_t>("image_input", {1, 1, 3, 1, 1}, {0, 0, 0})) ==
        "image_input" + images);
  CHECK(error(host::InStrings("image_url_input", {1, 1}, {"http://x"})) ==
        "IMAGE_URL (image_url_input)" + images);
}

TEST_CASE("bls: parameters of upstream's model") {
  const auto refused = [](const char* key, const char* feature) {
    CHECK(LoadError({{key, "x"}}) == "parameter " + std::string(key) +
                                         ": 'x' is not supported (no support for " + feature + ")");
  };
  refused("tensorrt_llm_draft_model_name", "draft tokens");
  refused("multimodal_encoders_name", "multimodal inputs");
  CHECK(LoadError({{"accumulate_tokens", "perhaps"}}).find("parameter accumulate_tokens") == 0);
}

TEST_CASE("bls: without any tokenizer it does not load") {
  const auto llm = Llm("{}", true, {}, nullptr, "tensorrt_llm");
  CHECK(LoadError({{"tensorrt_llm_model_name", "tensorrt_llm"}}) ==
        "parameter tokenizer_dir: not set; it must name the directory of a Hugging Face tokenizer, "
        "unless model 'tensorrt_llm' is loaded and names one");
}

TEST_CASE("bls: is withdrawn beside the ensemble when their llm dies") {
  host::Repository repository;
  const auto llm = Llm(R"({"die_at_step": 2, "fault_count": 1000})", true,
                       {{"max_restarts", "0"}, {"tokenizer", "double"}}, repository.server());
  const auto ensemble = Pipeline(true, repository.server());
  const auto bls = Bls({}, repository.server());
  const auto client = Send(bls.get(), AskText("fox", 10));
  CHECK(static_cast<bool>(client->WaitFinal().back().error));
  std::vector<std::string> unloaded;
  for (const std::string& call : repository.WaitCalls(6)) {
    if (call.find("unload ") == 0) unloaded.push_back(call);
  }
  CHECK(unloaded ==
        std::vector<std::string>{"unload llm", "unload ensemble", "unload tensorrt_llm_bls"});
  CheckClean({client});
}

// The texts of the responses to one stream, an error's message in its place.
class Texts {
 public:
  void Put(std::string text) {
    const std::lock_guard<std::mutex> lock(mutex_);
    texts_.push_back(std::move(text));
    changed_.notify_all();
  }
  std::vector<std::string> WaitFor(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    REQUIRE(
        changed_.wait_for(lock, std::chrono::seconds(20), [&] { return texts_.size() >= count; }));
    return texts_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> texts_;
};

class TextChannel final : public ResponseChannel {
 public:
  explicit TextChannel(std::shared_ptr<Texts> texts) : texts_(std::move(texts)) {}
  void Send(const std::vector<OutputTensor>& outputs, bool) override {
    texts_->Put(outputs.at(0).data.substr(sizeof(uint32_t)));  // after its length
  }
  void SendError(const Status& error, bool) override { texts_->Put(error.message()); }
  bool cancelled() override { return false; }

 private:
  const std::shared_ptr<Texts> texts_;
};

// A streamed request for two sequences that give "ab" and "xy"; the second ends like this, with
// "z". What the client gets, in order.
std::vector<std::string> Stream(bool accumulate, FinishReason second) {
  ResponsePlan plan;
  plan.streaming = plan.pipeline = plan.text = plan.text_output = true;
  plan.ids = false;
  plan.num_sequences = 2;
  plan.accumulate_text = accumulate;
  const auto texts = std::make_shared<Texts>();
  const auto stream = std::make_shared<LlmStream>(std::make_unique<TextChannel>(texts), plan);
  const auto delivery = Delivery::Create();
  delivery->Start({5, 8, [](RequestHandle) {}});
  delivery->Add(stream);
  size_t sent = 0;
  const auto post = [&](int32_t sequence, const char* text, FinishReason reason, size_t responses) {
    Event event;
    event.text = text;
    event.sequence_index = sequence;
    event.reason = reason;
    event.request_done = sequence == 1 && reason != FinishReason::kNone;
    event.context = std::make_shared<LlmContext>(stream, 0);
    std::vector<Event> events;
    events.push_back(std::move(event));
    delivery->OnEvents(std::move(events));
    texts->WaitFor(sent += responses);
  };
  post(0, "a", FinishReason::kNone, 1);
  post(1, "x", FinishReason::kNone, 1);
  post(0, "b", FinishReason::kNone, 1);
  post(1, "y", FinishReason::kNone, 1);
  post(0, "", FinishReason::kLength, 1);
  post(1, "z", second, second == FinishReason::kLength ? 1 : 2);
  delivery->Stop();
  return texts->WaitFor(sent);
}

TEST_CASE("bls: accumulate_tokens streams all text so far") {
  using Strings = std::vector<std::string>;
  CHECK(Stream(false, FinishReason::kLength) == Strings{"a", "x", "b", "y", "", "z"});
  CHECK(Stream(true, FinishReason::kLength) == Strings{"a", "x", "ab", "xy", "ab", "xyz"});
}

TEST_CASE("bls: a stream that is stopped or fails keeps its text") {
  const auto end = [](bool accumulate, FinishReason reason) {
    auto texts = Stream(accumulate, reason);
    texts.erase(texts.begin(), texts.begin() + 5);
    return texts;
  };
  using Strings = std::vector<std::string>;
  CHECK(end(false, FinishReason::kCancelled) == Strings{"z", ""});
  CHECK(end(true, FinishReason::kCancelled) == Strings{"xyz", "xyz"});
  CHECK(end(false, FinishReason::kError) == Strings{"z", "the request failed"});
  CHECK(end(true, FinishReason::kError) == Strings{"xyz", "the request failed"});
}

TEST_CASE("bls: only a stream accumulates") {
  const auto accumulates = [](bool setting, bool stream) {
    const RequestData request = RequestBuilder().Bool("streaming", stream).Build();
    ReaderSettings settings;
    settings.pipeline = true;
    settings.accumulate_text = setting;
    settings.skip_special_tokens = true;
    return ReadResponsePlan(request, settings)->accumulate_text;
  };
  CHECK(accumulates(true, true));
  CHECK_FALSE(accumulates(true, false));
  CHECK_FALSE(accumulates(false, true));
}

}  // namespace
}  // namespace slipstream::triton
