// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tokenizer_double.h"
#include "triton/model.h"
#include "triton/parameters.h"
#include "triton/tensor_table.h"
#include "triton_declared.h"
#include "triton_host.h"

// Models of the backend on the host double, and requests to them.

namespace slipstream::triton {

inline std::unique_ptr<Model> Load(Role role, const std::string& name, bool decoupled,
                                   TRITONSERVER_Server* server, ParameterMap parameters) {
  ModelConfig config = Declared(role, name);
  config.decoupled = decoupled;
  config.server = server;
  config.json = R"({"name": ")" + name + R"("})";
  config.parameters = std::move(parameters);
  auto model = Model::Create(std::move(config));
  REQUIRE_MESSAGE(model.ok(), model.status().message());
  return std::move(model).value();
}

inline std::unique_ptr<Model> Llm(const std::string& scripted, bool decoupled = true,
                                  ParameterMap more = {}, TRITONSERVER_Server* server = nullptr,
                                  const std::string& name = "llm") {
  more.insert({{"role", "llm"},
               {"worker", "scripted"},
               {"scripted", scripted},
               {"drain_timeout_ms", "5000"},
               {"cancellation_check_period_ms", "5"},
               {"exit_on_fatal", "false"}});  // or the tests would end with their dead models
  for (auto set = more.begin(); set != more.end();) {  // as ModelConfig reads them
    set = set->second.empty() ? more.erase(set) : std::next(set);
  }
  return Load(Role::kLlm, name, decoupled, server, std::move(more));
}

inline host::RequestSpec Ask(const std::vector<int32_t>& prompt, int32_t max_tokens,
                             bool streaming) {
  host::RequestSpec spec;
  const auto size = static_cast<int32_t>(prompt.size());
  spec.inputs = {host::In<int32_t>("input_ids", {1, size}, prompt),
                 host::In<int32_t>("input_lengths", {1, 1}, {size}),
                 host::In<int32_t>("request_output_len", {1, 1}, {max_tokens}),
                 host::InBool("streaming", streaming),
                 host::InBool("return_finish_reason", true),
                 host::InBool("return_usage", true),
                 host::InBool("exclude_input_in_output", true)};
  for (const TensorRow& row : OutputRows(Role::kLlm)) spec.outputs.emplace_back(row.name);
  return spec;
}

inline std::shared_ptr<host::Client> Send(Model* model, const host::RequestSpec& spec) {
  auto client = std::make_shared<host::Client>();
  TRITONBACKEND_Request* request = host::NewRequest(spec, client);
  model->Execute(nullptr, &request, 1);
  return client;
}

inline std::vector<int32_t> Ids(const std::vector<host::Response>& responses) {
  std::vector<int32_t> ids;
  for (const host::Response& response : responses) {
    const host::Output* output = response.Find("output_ids");
    if (output == nullptr) continue;
    const auto part = output->As<int32_t>();
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

inline std::string Reason(const std::vector<host::Response>& responses) {
  const host::Output* output = responses.back().Find("finish_reason");
  return output == nullptr ? "" : output->Strings()[0];
}

// Role `pipeline` over a model of the name "llm", with a TokenizerDouble.
inline std::unique_ptr<Model> Pipeline(bool decoupled = true,
                                       TRITONSERVER_Server* server = nullptr) {
  return Load(Role::kPipeline, "ensemble", decoupled, server,
              {{"role", "pipeline"},
               {"llm_model_name", "llm"},
               {"tokenizer", "double"},
               {"python_executable", kThisBinary}});
}

// A request to a Pipeline. The scripted worker has no text, so none is asked for.
inline host::RequestSpec AskText(const std::string& text, int32_t max_tokens, bool stream = true) {
  host::RequestSpec spec;
  spec.inputs = {host::InStrings("text_input", {1, 1}, {text}),
                 host::In<int32_t>("max_tokens", {1, 1}, {max_tokens}),
                 host::InBool("stream", stream), host::InBool("return_finish_reason", true),
                 host::InBool("return_usage", true)};
  spec.outputs = {"finish_reason", "prompt_tokens", "completion_tokens"};
  return spec;
}

inline void WaitFor(const std::function<bool()>& condition) {
  for (int i = 0; i < 20000 && !condition(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  REQUIRE(condition());
}

// Nothing of any request is left, and each got its one final response, statistics and release.
inline void CheckClean(const std::vector<std::shared_ptr<host::Client>>& clients) {
  for (const auto& client : clients) {
    WaitFor([&] { return client->released > 0; });
    CHECK(client->released == 1);
    CHECK(client->reported_success + client->reported_failure == 1);
    int finals = 0;
    for (const host::Response& response : client->responses()) finals += response.final ? 1 : 0;
    CHECK(finals == 1);
    CHECK(client->responses().back().final);
  }
  const host::Alive alive = host::CountAlive();
  CHECK(alive.requests == 0);
  CHECK(alive.factories == 0);
  CHECK(alive.responses == 0);
  CHECK(alive.errors == 0);
}

}  // namespace slipstream::triton
