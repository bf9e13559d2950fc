// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// Role `pipeline` on the host double, with a ScriptedWorker behind its `llm`.

#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "triton/pipeline_wiring.h"
#include "triton_host.h"
#include "triton_models.h"

namespace slipstream::triton {
namespace {

using host::Client;
using host::Response;

std::string ErrorOf(Model* model, const host::RequestSpec& spec, TRITONSERVER_Error_Code code) {
  const auto client = Send(model, spec);
  const auto responses = client->WaitFinal();
  CheckClean({client});
  REQUIRE(static_cast<bool>(responses.back().error));
  CHECK(responses.back().error->first == code);
  return responses.back().error->second;
}

host::RequestSpec With(host::RequestSpec spec, host::Output input) {
  spec.inputs.push_back(std::move(input));
  return spec;
}

TEST_CASE("pipeline: text in, every answer of the llm out") {
  const auto llm = Llm("{}");
  const auto pipeline = Pipeline();
  CHECK(pipeline->Ready().ok());
  auto spec = With(AskText("fox", 10), host::InStrings("bad_words", {1, 2}, {"ab", ""}));
  spec = With(std::move(spec), host::InStrings("embedding_bias_words", {1, 1}, {"x"}));
  spec = With(std::move(spec), host::In<float>("embedding_bias_weights", {1, 1}, {0.5f}));
  const auto client = Send(pipeline.get(), spec);
  const Response last = client->WaitFinal().back();
  CHECK(last.Find("prompt_tokens")->As<int32_t>()[0] == 3);
  CHECK(last.Find("completion_tokens")->As<int32_t>()[0] == 10);
  CHECK(last.Find("finish_reason")->Strings()[0] == "length");
  CheckClean({client});
}

TEST_CASE("pipeline: messages nested without end are refused, not followed") {
  const auto llm = Llm("{}");
  const auto pipeline = Pipeline();
  const auto nested = [](size_t levels) {
    const std::string value = std::string(levels, '[') + std::string(levels, ']');
    return With(AskText("", 4), host::InStrings("messages", {1, 1}, {value}));
  };
  const std::string message =
      ErrorOf(pipeline.get(), nested(2'000'000), TRITONSERVER_ERROR_INVALID_ARG);
  CHECK(message ==
        "MESSAGES (messages): must be a JSON array, but is nested deeper than 100 levels");
  const auto client = Send(pipeline.get(), nested(50));
  CHECK_FALSE(static_cast<bool>(client->WaitFinal().back().error));
  CheckClean({client});
}

TEST_CASE("pipeline: errors name the field as the client knows it") {
  const auto llm = Llm("{}");
  const auto pipeline = Pipeline();
  const auto invalid = [&](host::RequestSpec spec) {
    return ErrorOf(pipeline.get(), spec, TRITONSERVER_ERROR_INVALID_ARG);
  };
  const auto unsupported = [&](host::RequestSpec spec) {
    return ErrorOf(pipeline.get(), spec, TRITONSERVER_ERROR_UNSUPPORTED);
  };
  const auto good = [] { return AskText("fox", 4); };
  CHECK(invalid(With(good(), host::In<int32_t>("top_k", {1, 1}, {-1})))
            .find("runtime_top_k (top_k): -1") == 0);
  CHECK(invalid(AskText("fox\xFF", 4)) == "QUERY (text_input): is not valid UTF-8");
  CHECK(invalid(With(good(), host::InStrings("bad_words", {1, 2}, {"a", "\xFF"}))) ==
        "BAD_WORDS_DICT (bad_words): entry 1 is not valid UTF-8");
  CHECK(invalid(AskText("fox", 0)).find("request_output_len (max_tokens): 0") == 0);
  CHECK(invalid(AskText("", 4)) == "QUERY (text_input): has no tokens; at least 1 is needed");
  CHECK(unsupported(With(good(), host::In<float>("length_penalty", {1, 1}, {0.5f})))
            .find("len_penalty (length_penalty): 0.5 is not supported") == 0);
  CHECK(unsupported(With(good(), host::In<uint64_t>("lora_task_id", {1, 1}, {1})))
            .find("lora_task_id: not supported") == 0);
  auto spec = good();
  spec.inputs.erase(spec.inputs.begin() + 1);
  CHECK(invalid(spec) == "max_tokens: this input is required");
  spec = good();
  spec.inputs.erase(spec.inputs.begin());
  CHECK(invalid(spec).find("QUERY (text_input): missing") == 0);
  CHECK(invalid(With(good(), host::In<int32_t>("runtime_top_k", {1, 1}, {1}))) ==
        "input 'runtime_top_k': role pipeline has no such input");
}

TEST_CASE("pipeline: what asks for more sequences than ever fit is told so, and holds up nothing") {
  const auto llm = Llm(R"({"step_us": 1000})", true, {{"max_queue_requests", "60"}});
  const auto pipeline = Pipeline();
  const auto wants = [](int32_t n) {
    auto spec = AskText("fox", 4);
    return With(std::move(spec), host::In<int32_t>("num_return_sequences", {1, 1}, {n}));
  };
  for (const int32_t n : {61, 2560, 0, -3}) {
    const auto refused = Send(pipeline.get(), wants(n));
    const auto served = Send(pipeline.get(), wants(3));  // beside it, whichever comes first
    const auto error = refused->WaitFinal().back().error;
    REQUIRE(static_cast<bool>(error));
    CHECK(error->first == TRITONSERVER_ERROR_INVALID_ARG);
    CHECK(error->second.find("num_return_sequences: " + std::to_string(n)) == 0);
    CHECK_FALSE(static_cast<bool>(served->WaitFinal().back().error));
    CheckClean({refused, served});
  }
}

TEST_CASE("pipeline: an error that is about no field stays as it is") {
  CHECK(NamedForClient(Status::Unavailable("the queue is full: 1")).message() ==
        "the queue is full: 1");
  CHECK(NamedForClient(Status::InvalidArgument("seed: -1")).message() == "seed: -1");
  CHECK(NamedForClient(Status::InvalidArgument("QUERY (text_input): missing")).message() ==
        "QUERY (text_input): missing");
  CHECK(NamedForClient(Status::Unsupported("input_ids: x")).code() == StatusCode::kUnsupported);
  CHECK(NamedForClient(Status::Ok()).ok());
}

TEST_CASE("pipeline: a client that leaves is answered CANCELLED") {
  const auto llm = Llm(R"({"step_us": 1000})");
  const auto pipeline = Pipeline();
  const auto client = std::make_shared<Client>();
  std::atomic<bool> begun{false};
  client->on_response = [&](const Response&) { begun = true; };
  TRITONBACKEND_Request* request = host::NewRequest(AskText("fox", 4000), client);
  pipeline->Execute(nullptr, &request, 1);
  while (!begun) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  client->Cancel();
  CHECK(client->WaitFinal().back().error->first == TRITONSERVER_ERROR_CANCELLED);
  CheckClean({client});
}

TEST_CASE("pipeline: a stop request to the llm ends its requests too") {
  const auto llm = Llm(R"({"step_us": 1000})");
  const auto pipeline = Pipeline();
  auto spec = AskText("fox", 4000);
  spec.id = "mine";
  host::RequestSpec stop;
  stop.id = "mine";
  stop.inputs = {host::InBool("stop", true)};
  // Wherever it finds them: waiting, being tokenized, on their way from there, or running.
  for (int us = 0; us < 2000; us += 50) {
    const auto client = Send(pipeline.get(), spec);
    std::this_thread::sleep_for(std::chrono::microseconds(us));
    const auto stopper = Send(llm.get(), stop);
    CHECK(stopper->WaitFinal()[0].outputs.empty());
    const Response last = client->WaitFinal().back();
    CHECK_FALSE(static_cast<bool>(last.error));
    CHECK(last.Find("finish_reason")->Strings()[0] == "cancelled");
    CheckClean({client, stopper});
  }
}

TEST_CASE("pipeline: without decoupling there is exactly one response") {
  const auto llm = Llm("{}");
  const auto pipeline = Pipeline(/*decoupled=*/false);
  const auto client = Send(pipeline.get(), AskText("fox", 4, /*stream=*/false));
  CHECK(client->WaitFinal().size() == 1);
  CheckClean({client});
  CHECK(ErrorOf(pipeline.get(), AskText("fox", 4), TRITONSERVER_ERROR_INVALID_ARG) ==
        "Streaming is only supported if model is deployed using decoupled mode.");
}

TEST_CASE("pipeline: the llm is looked up at each request") {
  const auto pipeline = Pipeline();
  const std::string missing =
      "parameter llm_model_name: model 'llm' is not loaded here, or is no model of role llm";
  CHECK(pipeline->Ready().message() == missing);
  CHECK(ErrorOf(pipeline.get(), AskText("fox", 4), TRITONSERVER_ERROR_UNAVAILABLE) == missing);
  auto first = Llm("{}");
  CHECK(pipeline->Ready().ok());
  auto second = Llm(R"({"die_at_step": 1})", true,
                    {{"max_restarts", "0"}});  // a reload: the newer one serves
  CHECK(ErrorOf(pipeline.get(), AskText("fox", 4), TRITONSERVER_ERROR_INTERNAL).size() > 0);
  CHECK(pipeline->Ready().code() == StatusCode::kUnavailable);
  second.reset();
  const auto client = Send(pipeline.get(), AskText("fox", 4));
  CHECK_FALSE(static_cast<bool>(client->WaitFinal().back().error));
  CheckClean({client});
  first.reset();
  CHECK(pipeline->Ready().message() == missing);
}

TEST_CASE("pipeline: a dead llm is withdrawn with the pipelines that hand over to it") {
  host::Repository repository;
  const char* const fails = R"({"die_at_step": 2, "fault_count": 1000})";
  const ParameterMap once = {{"max_restarts", "0"}};
  const std::string why =
      "the worker failed: the scripted worker died: scripted death at step 2 (gave up after "
      "max_restarts = 0)";
  const auto pipeline = Pipeline(true, repository.server());
  const auto llm = Llm(fails, true, once, repository.server());
  const auto client = Send(pipeline.get(), AskText("fox", 10));
  CHECK(static_cast<bool>(client->WaitFinal().back().error));
  CHECK(repository.WaitCalls(4) ==
        std::vector<std::string>{"unload llm", "unload ensemble",
                                 "load ensemble: model ensemble was withdrawn: " + why,
                                 "load llm: model llm was withdrawn: " + why});
  CheckClean({client});
}

TEST_CASE("pipeline: an llm that was replaced is not withdrawn when it dies") {
  host::Repository repository;
  const auto old = Llm(R"({"die_at_step": 2})", true, {{"max_restarts", "0"}}, repository.server());
  // The name means this one now.
  const auto replacement =
      Llm(R"({"die_at_step": 4})", true, {{"max_restarts", "0"}}, repository.server());
  const auto lost = Send(old.get(), Ask({1}, 50, true));
  CHECK(static_cast<bool>(lost->WaitFinal().back().error));
  CHECK(old->Ready().code() == StatusCode::kUnavailable);
  const auto next = Send(replacement.get(), Ask({1}, 50, true));
  CHECK(static_cast<bool>(next->WaitFinal().back().error));
  CHECK(repository.WaitCalls(2)[0] == "unload llm");
  CHECK(repository.WaitCalls(2).size() == 2);
  CheckClean({lost, next});
}

TEST_CASE("pipeline: unloading the llm lets its requests finish") {
  const auto pipeline = Pipeline();
  auto llm = Llm(R"({"step_us": 500})");
  std::vector<std::shared_ptr<Client>> clients;
  for (int i = 0; i < 8; ++i) clients.push_back(Send(pipeline.get(), AskText("fox", 60)));
  llm.reset();
  for (const auto& client : clients) {
    const Response last = client->WaitFinal().back();
    CHECK_FALSE(static_cast<bool>(last.error));
    CHECK(last.Find("completion_tokens")->As<int32_t>()[0] == 60);
  }
  CheckClean(clients);
}

// What Triton's threads do: requests keep coming while the llm is unloaded and loaded.
TEST_CASE("pipeline: a request that races with an unload is served or UNAVAILABLE") {
  const auto pipeline = Pipeline();
  constexpr int kThreads = 3;
  std::atomic<bool> done{false};
  std::atomic<int> served{0};
  std::atomic<int> refused{0};
  std::vector<std::vector<std::shared_ptr<Client>>> sent(kThreads);
  std::vector<std::thread> threads;
  for (auto& clients : sent) {
    threads.emplace_back([&] {
      while (!done) {
        clients.push_back(Send(pipeline.get(), AskText("fox", 3)));
        ++(clients.back()->WaitFinal().back().error ? refused : served);
      }
    });
  }
  const auto await_one_more = [](const std::atomic<int>& count) {
    for (const int before = count; count == before;) std::this_thread::yield();
  };
  for (int round = 0; round < 20; ++round) {
    {
      const auto llm = Llm(R"({"step_us": 50})");
      await_one_more(served);
    }
    await_one_more(refused);
  }
  done = true;
  for (auto& thread : threads) thread.join();
  std::vector<std::shared_ptr<Client>> all;
  for (const auto& clients : sent) all.insert(all.end(), clients.begin(), clients.end());
  for (const auto& client : all) {
    const auto error = client->WaitFinal().back().error;
    if (error) CHECK_MESSAGE(error->first == TRITONSERVER_ERROR_UNAVAILABLE, error->second);
  }
  CheckClean(all);
}

}  // namespace
}  // namespace slipstream::triton
