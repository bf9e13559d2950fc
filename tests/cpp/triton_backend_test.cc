// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// The whole backend on the host double: Execute in, responses out, with a ScriptedWorker.

#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "triton/flow_registry.h"
#include "triton/model.h"
#include "triton/parameters.h"
#include "triton/tensor_table.h"
#include "triton_host.h"
#include "triton_models.h"

namespace slipstream::triton {
namespace {

using host::Client;
using host::In;
using host::InBool;
using host::Response;

TEST_CASE("backend: streamed tokens add up to the non-streamed ones") {
  const auto model = Llm("{}");
  const auto streamed = Send(model.get(), Ask({5, 6, 7}, 10, true));
  const auto whole = Send(model.get(), Ask({5, 6, 7}, 10, false));
  const std::vector<int32_t> expected = {5, 6, 7, 5, 6, 7, 5, 6, 7, 5};
  const auto pieces = streamed->WaitFinal();
  CHECK(Ids(pieces) == expected);
  CHECK(Reason(pieces) == "length");
  const auto one = whole->WaitFinal();
  CHECK(one.size() == 1);
  CHECK(Ids(one) == expected);
  CHECK(one[0].Find("prompt_tokens")->As<int32_t>()[0] == 3);
  CHECK(one[0].Find("completion_tokens")->As<int32_t>()[0] == 10);
  CheckClean({streamed, whole});
}

TEST_CASE("backend: endings have their reasons") {
  const auto model = Llm(R"({"end_after": 3, "end_ids": [2]})");
  const auto end = Send(model.get(), Ask({5, 6, 7}, 10, true));
  CHECK(Reason(end->WaitFinal()) == "stop");

  auto words = Ask({5, 6, 7, 8}, 10, true);
  words.inputs.push_back(In<int32_t>("stop_words_list", {1, 2, 2}, {5, 6, 2, -1}));
  const auto word = Send(model.get(), words);
  CHECK(Reason(word->WaitFinal()) == "stop_sequence");

  auto late = Ask({5}, 2, false);
  late.inputs.push_back(In<int32_t>("timeout_ms", {1, 1}, {1}));
  const auto slow = Llm(R"({"step_us": 50000})");
  const auto deadline = Send(slow.get(), late);
  const auto error = deadline->WaitFinal().back().error;
  REQUIRE(static_cast<bool>(error));
  CHECK(error->first == TRITONSERVER_ERROR_UNAVAILABLE);
  CHECK(error->second.find("deadline") != std::string::npos);
  CheckClean({end, word, deadline});
}

TEST_CASE("backend: refusals are typed and name the field") {
  const auto model = Llm("{}");
  auto beams = Ask({5}, 2, false);
  beams.inputs.push_back(In<int32_t>("beam_width", {1, 1}, {2}));
  auto lora = Ask({5}, 2, false);
  lora.inputs.push_back(In<uint64_t>("lora_task_id", {1, 1}, {1}));
  const auto empty = Ask({5}, 0, false);
  const auto foreign = Ask({1 << 30}, 2, false);
  const struct {
    host::RequestSpec spec;
    TRITONSERVER_Error_Code code;
    std::string field;
  } cases[] = {{beams, TRITONSERVER_ERROR_UNSUPPORTED, "beam_width"},
               {lora, TRITONSERVER_ERROR_UNSUPPORTED, "lora_task_id"},
               {empty, TRITONSERVER_ERROR_INVALID_ARG, "request_output_len"},
               {foreign, TRITONSERVER_ERROR_INVALID_ARG, "input_ids"}};
  for (const auto& c : cases) {
    const auto client = Send(model.get(), c.spec);
    const auto error = client->WaitFinal().back().error;
    REQUIRE(static_cast<bool>(error));
    CHECK(error->first == c.code);
    CHECK(error->second.find(c.field) == 0);
    CheckClean({client});
    CHECK(client->reported_failure == 1);
  }
}

TEST_CASE("backend: a stop request ends all requests of its id, and only those") {
  const auto model = Llm(R"({"step_us": 1000})");
  auto spec = Ask({5, 6}, 4000, true);
  spec.id = "mine";
  const auto first = Send(model.get(), spec);
  const auto second = Send(model.get(), spec);
  spec.id = "other";
  spec.inputs[2] = In<int32_t>("request_output_len", {1, 1}, {50});
  const auto other = Send(model.get(), spec);
  host::RequestSpec stop;
  stop.id = "mine";
  stop.inputs = {In<int32_t>("input_ids", {1, 1}, {-5}), In<int32_t>("input_lengths", {1, 1}, {0}),
                 In<int32_t>("request_output_len", {1, 1}, {0}), InBool("stop", true)};
  const auto stopper = Send(model.get(), stop);
  const auto answer = stopper->WaitFinal();
  CHECK(answer.size() == 1);
  CHECK(answer[0].outputs.empty());
  CHECK_FALSE(static_cast<bool>(answer[0].error));
  for (const auto& client : {first, second}) {
    const auto last = client->WaitFinal().back();
    CHECK_FALSE(static_cast<bool>(last.error));
    CHECK(last.Find("output_ids") == nullptr);
    CHECK(last.Find("finish_reason")->Strings()[0] == "cancelled");
  }
  CHECK(Ids(other->WaitFinal()).size() == 50);
  CheckClean({first, second, other, stopper});
}

TEST_CASE("backend: a later step of an ensemble cancels the stream behind its handle") {
  const auto model = Llm(R"({"step_us": 1000})");
  auto spec = Ask({5, 6}, 4000, true);
  spec.outputs = {"output_ids", "sequence_length", "flow"};
  const auto client = std::make_shared<Client>();
  std::atomic<uint64_t> handle{0};
  client->on_response = [&](const Response& response) {
    if (const host::Output* flow = response.Find("flow"))
      handle = *ParseFlowKey(flow->Strings()[0]);
  };
  TRITONBACKEND_Request* request = host::NewRequest(spec, client);
  model->Execute(nullptr, &request, 1);
  while (handle == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const auto flow = FlowRegistry::Instance().Find(handle);
  REQUIRE(static_cast<bool>(flow));
  flow->OnCancelled();
  const auto last = client->WaitFinal().back();
  // Not an error: an ensemble one of whose steps fails may never end (see Delivery::HoldErrors).
  CHECK_FALSE(static_cast<bool>(last.error));
  CHECK(Ids({last}).empty());
  CheckClean({client});
  // The handle goes after the last response, on the thread that sent it.
  WaitFor([] { return FlowRegistry::Instance().size() == 0; });
}

TEST_CASE("backend: a dead worker's requests continue, and a dead model answers with errors") {
  const auto recovers =
      Llm(R"({"die_at_step": 5, "step_us": 500})", true, {{"restart_backoff_ms", "1"}});
  std::vector<std::shared_ptr<Client>> clients;
  for (int32_t i = 0; i < 8; ++i) {
    clients.push_back(Send(recovers.get(), Ask({10 + i, 9}, 20, true)));
  }
  for (int32_t i = 0; i < 8; ++i) {
    const auto ids = Ids(clients[static_cast<size_t>(i)]->WaitFinal());
    REQUIRE(ids.size() == 20);
    for (size_t t = 0; t < ids.size(); ++t) CHECK(ids[t] == (t % 2 == 0 ? 10 + i : 9));
  }
  CheckClean(clients);

  const auto dies = Llm(R"({"die_at_step": 3, "step_us": 500})", true, {{"max_restarts", "0"}});
  CHECK(dies->Ready().ok());
  const auto lost = Send(dies.get(), Ask({1}, 50, true));
  const auto error = lost->WaitFinal().back().error;
  REQUIRE(static_cast<bool>(error));
  const auto late = Send(dies.get(), Ask({1}, 50, true));
  CHECK(late->WaitFinal().back().error->first == TRITONSERVER_ERROR_UNAVAILABLE);
  CHECK(dies->Ready().code() == StatusCode::kUnavailable);
  CheckClean({lost, late});
}

TEST_CASE("backend: unloading lets accepted requests finish") {
  std::vector<std::shared_ptr<Client>> clients;
  {
    const auto model = Llm(R"({"step_us": 500})");
    for (int i = 0; i < 16; ++i) clients.push_back(Send(model.get(), Ask({5, 6}, 60, true)));
  }
  for (const auto& client : clients) CHECK(Ids(client->WaitFinal()).size() == 60);
  CheckClean(clients);
  CHECK(host::CountAliveMetrics().metrics == 0);
  CHECK(host::CountAliveMetrics().families == 0);
}

TEST_CASE("backend: cancellations at any moment leave nothing behind") {
  const auto model = Llm(R"({"step_us": 100})");
  std::vector<std::shared_ptr<Client>> clients;
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    const bool streaming = random() % 2 == 0;
    auto spec = Ask({static_cast<int32_t>(random() % 100), 6},
                    1 + static_cast<int32_t>(random() % 40), streaming);
    if (random() % 4 == 0) spec.outputs = {"output_ids", "sequence_length", "flow"};
    if (random() % 4 == 0) spec.inputs.push_back(In<int32_t>("num_return_sequences", {1, 1}, {3}));
    clients.push_back(Send(model.get(), spec));
    if (random() % 2 == 0) clients[random() % clients.size()]->Cancel();
    if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
  }
  for (const auto& client : clients) {
    const auto last = client->WaitFinal().back();
    if (last.error) CHECK(last.error->first == TRITONSERVER_ERROR_CANCELLED);
    if (!client->cancelled) CHECK_FALSE(static_cast<bool>(last.error));
  }
  CheckClean(clients);
}

TEST_CASE("backend: without decoupling there is exactly one response") {
  const auto model = Llm("{}", /*decoupled=*/false);
  const auto good = Send(model.get(), Ask({5, 6}, 4, false));
  CHECK(good->WaitFinal().size() == 1);
  const auto bad = Send(model.get(), Ask({5, 6}, 4, true));
  CHECK(bad->WaitFinal()[0].error->second ==
        "Streaming is only supported if model is deployed using decoupled mode.");
  CheckClean({good, bad});
}

TEST_CASE("backend: a configuration that cannot be served does not load") {
  ModelConfig config;
  config.name = "llm";
  config.inputs = {{"input_lengths", "INT32"}, {"request_output_len", "INT32"}};
  CHECK(Model::Create(config).status().message().find("parameter role: not set") == 0);
  config.parameters = {{"role", "llm"}, {"worker", "scripted"}};
  config.instance_count = 2;
  CHECK(Model::Create(config).status().message().find("instance_group: 2 instances") == 0);
  config.instance_count = 1;
  config.parameters["scripted"] = R"({"speed": 9})";
  CHECK(Model::Create(config).status().message().find("parameter scripted: ") == 0);
  config.parameters["scripted"] = "{}";
  config.parameters["max_attention_window_size"] = "16";
  CHECK(Model::Create(config).status().code() == StatusCode::kUnsupported);
  ModelConfig post;
  post.inputs = {{"TOKENS_BATCH", "INT32"}, {"SEQUENCE_LENGTH", "INT32"}};
  post.parameters = {{"role", "detokenize"}, {"tokenizer_dir", "/nowhere"}};
  post.instance_count = 3;
  CHECK(Model::Create(post).status().message().find("instance_group: 3 instances") == 0);
  post.instance_count = 1;
  post.dynamic_batching = true;
  CHECK(Model::Create(post).status().message().find("dynamic_batching: ") == 0);
}

}  // namespace
}  // namespace slipstream::triton
