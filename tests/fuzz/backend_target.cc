// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <chrono>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "input_bytes.h"
#include "request_bytes.h"
#include "targets.h"
#include "tokenizer_double.h"
#include "triton/flow_registry.h"
#include "triton/model.h"
#include "triton/parameters.h"
#include "triton_declared.h"
#include "triton_host.h"

namespace slipstream::fuzz {
namespace {

using triton::Model;
using triton::ModelConfig;
using triton::Role;
using triton::host::Client;
using triton::host::RequestSpec;

std::unique_ptr<Model> Load(ModelConfig config) {
  config.json = "{}";
  auto model = Model::Create(std::move(config));
  Require(model.ok(), model.status().message());
  return std::move(model).value();
}

constexpr Role kRoles[] = {Role::kLlm, Role::kPipeline, Role::kTokenize, Role::kDetokenize};

// A stream that role detokenize reports to.
struct Flow : triton::FlowListener {
  std::atomic<int> acknowledged{0};
  std::atomic<int> cancelled{0};
  void OnAcknowledged() override { ++acknowledged; }
  void OnCancelled() override { ++cancelled; }
};

// A model of each role, for all runs.
struct Backend {
  std::map<Role, std::unique_ptr<Model>> models;
  std::shared_ptr<Flow> flow = std::make_shared<Flow>();
  std::string flow_key = triton::FlowKey(triton::FlowRegistry::Instance().Register(flow));

  Backend() {
    Add(Role::kLlm, {{"worker", "scripted"},
                     {"scripted", R"({"vocab_size": 256, "max_seq_len": 64})"},
                     {"drain_timeout_ms", "5000"}});
    Add(Role::kPipeline, {{"llm_model_name", "llm"}, {"tokenizer", "double"}});
    Add(Role::kTokenize, {{"tokenizer", "double"}});
    Add(Role::kDetokenize, {{"tokenizer", "double"}});
  }

  void Add(Role role, triton::ParameterMap parameters) {
    ModelConfig config = triton::Declared(role, triton::RoleName(role));
    parameters["role"] = triton::RoleName(role);
    if (role != Role::kLlm) parameters["python_executable"] = kThisBinary;
    config.parameters = std::move(parameters);
    models[role] = Load(std::move(config));
  }
};

// The key of the live stream where a request has the word for it.
void PutFlow(const std::string& key, RequestSpec* spec) {
  for (auto& input : spec->inputs) {
    const size_t at = input.data.find(kLiveFlow);
    if (input.name == "FLOW" && at != std::string::npos) input.data.replace(at, key.size(), key);
  }
}

void AwaitRelease(const Client& client) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (client.released == 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
}

// Whatever is asked is answered, to its one final response, and nothing of it is left.
void Run(const uint8_t* data, size_t size) {
  static const Backend backend;
  InputBytes in(data, size);
  const size_t kind = in.Below(2 * std::size(kRoles));
  const Role role = kRoles[kind % std::size(kRoles)];
  const auto client = std::make_shared<Client>();
  client->cancelled = kind >= std::size(kRoles);
  RequestSpec spec = UnpackRequest(role, &in);
  PutFlow(backend.flow_key, &spec);
  const int acknowledged = backend.flow->acknowledged;
  const int cancelled = backend.flow->cancelled;
  TRITONBACKEND_Request* request = triton::host::NewRequest(spec, client);
  backend.models.at(role)->Execute(nullptr, &request, 1);
  const auto responses = client->WaitFinal();
  AwaitRelease(*client);
  Require(client->released == 1, "it is released once");
  Require(client->reported_success + client->reported_failure == 1, "it is reported once");
  for (size_t i = 0; i < responses.size(); ++i) {
    Require(responses[i].final == (i + 1 == responses.size()), "only the last is final");
    if (responses[i].error == nullptr) continue;
    const auto& [code, message] = *responses[i].error;
    Require(code != TRITONSERVER_ERROR_INTERNAL || message.rfind("Trying to stop", 0) == 0 ||
                message.rfind("the tokenizer process", 0) == 0,
            message);
    Require(message.size() <= 2010, "a message fits a header");
  }
  const auto alive = triton::host::CountAlive();
  const bool failed = responses.back().error != nullptr;
  Require(!failed || backend.flow->acknowledged == acknowledged, "an error acknowledges nothing");
  Require(client->cancelled || backend.flow->cancelled == cancelled, "only who has gone cancels");
  Require(alive.requests == 0 && alive.responses == 0 && alive.errors == 0, "nothing is left");
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (size_t i = 0; i < std::size(kRoles); ++i) {
    for (const auto& spec : GoodRequests(kRoles[i])) {
      seeds.push_back(OutputBytes().Byte(i).Raw(PackRequest(kRoles[i], spec)).bytes());
    }
  }
  return seeds;
}

}  // namespace

FuzzTarget BackendTarget() { return {"backend", Run, Seeds}; }

}  // namespace slipstream::fuzz
