// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "input_bytes.h"
#include "request_bytes.h"
#include "targets.h"
#include "tokenizer_double.h"
#include "triton/model.h"
#include "triton_declared.h"
#include "triton_host.h"

namespace slipstream::fuzz {
namespace {

using triton::Model;
using triton::ModelConfig;
using triton::Role;
using triton::host::Client;

std::unique_ptr<Model> Load(ModelConfig config) {
  config.json = "{}";
  auto model = Model::Create(std::move(config));
  Require(model.ok(), model.status().message());
  return std::move(model).value();
}

// One llm and the pipeline before it, for all runs.
struct Backend {
  std::unique_ptr<Model> llm;
  std::unique_ptr<Model> pipeline;

  Backend() {
    ModelConfig config = triton::Declared(Role::kLlm, "llm");
    config.parameters = {{"role", "llm"},
                         {"worker", "scripted"},
                         {"scripted", R"({"vocab_size": 256, "max_seq_len": 64})"},
                         {"drain_timeout_ms", "5000"}};
    llm = Load(std::move(config));
    config = triton::Declared(Role::kPipeline, "ensemble");
    config.parameters = {{"role", "pipeline"},
                         {"llm_model_name", "llm"},
                         {"tokenizer", "double"},
                         {"python_executable", kThisBinary}};
    pipeline = Load(std::move(config));
  }
};

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
  const bool is_text = in.Below(2) == 1;
  const Role role = is_text ? Role::kPipeline : Role::kLlm;
  const auto client = std::make_shared<Client>();
  const auto spec = UnpackRequest(role, &in);
  TRITONBACKEND_Request* request = triton::host::NewRequest(spec, client);
  (is_text ? backend.pipeline : backend.llm)->Execute(nullptr, &request, 1);
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
  Require(alive.requests == 0 && alive.responses == 0 && alive.errors == 0, "nothing is left");
}

std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const Role role : {Role::kLlm, Role::kPipeline}) {
    for (const auto& spec : GoodRequests(role)) {
      seeds.push_back(std::string(1, role == Role::kPipeline ? '\1' : '\0') +
                      PackRequest(role, spec));
    }
  }
  return seeds;
}

}  // namespace

FuzzTarget BackendTarget() { return {"backend", Run, Seeds}; }

}  // namespace slipstream::fuzz
