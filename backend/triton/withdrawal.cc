// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/withdrawal.h"

#include <memory>
#include <nlohmann/json.hpp>

#include "triton/error.h"

namespace slipstream::triton {
namespace {

constexpr char kParameter[] = "withdrawn";  // the reason

std::string Refusal(const ModelConfig& config, const std::string& why) {
  return "model " + config.name + " was withdrawn: " + why;
}

std::string WithReason(const std::string& config, const std::string& why) {
  auto json = nlohmann::json::parse(config);
  json["parameters"][kParameter] = {{"string_value", why}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Status Unload(const ModelConfig& model) {
  return FromTritonError(TRITONSERVER_ServerUnloadModel(model.server, model.name.c_str()));
}

// With a configuration that CheckNotWithdrawn() refuses.
Status LoadRefused(const ModelConfig& model, const std::string& why) {
  const std::unique_ptr<TRITONSERVER_Parameter, void (*)(TRITONSERVER_Parameter*)> config(
      TRITONSERVER_ParameterNew("config", TRITONSERVER_PARAMETER_STRING,
                                WithReason(model.json, why).c_str()),
      TRITONSERVER_ParameterDelete);
  const TRITONSERVER_Parameter* parameters[] = {config.get()};
  const Status loaded = FromTritonError(
      TRITONSERVER_ServerLoadModelWithParameters(model.server, model.name.c_str(), parameters, 1));
  if (loaded.message().find(Refusal(model, why)) != std::string::npos) return Status::Ok();
  return loaded.ok() ? Status::Internal("it was loaded again in spite of: " + why) : loaded;
}

}  // namespace

Status Withdraw(const ModelConfig& llm, const std::vector<ModelConfig>& pipelines,
                const std::string& why) {
  // Unloaded first, which takes down the ensembles that have it as a step. Else tritonserver 2.51
  // loads those again, on another thread, beside the pipelines, and crashes when one of these fails
  // to load meanwhile: at about one death in 300.
  if (Status s = Unload(llm); !s.ok()) return s;
  for (const ModelConfig& pipeline : pipelines) {
    Status s = Unload(pipeline);
    if (s.ok()) s = LoadRefused(pipeline, why);
    if (!s.ok()) {
      LogWarning("model " + pipeline.name + " stays ready for the server: " + s.message());
    }
  }
  return LoadRefused(llm, why);  // last: who sees it withdrawn may load all of them again
}

bool IsServing(TRITONSERVER_Server* server) {
  // Of no model, since an error can also come from a model that is there: newer servers ask it.
  bool ready = false;
  return FromTritonError(TRITONSERVER_ServerModelIsReady(server, "", -1, &ready)).ok();
}

Status CheckNotWithdrawn(const ModelConfig& config) {
  const auto why = config.parameters.find(kParameter);
  if (why == config.parameters.end()) return Status::Ok();
  return Status::Unavailable(Refusal(config, why->second));
}

}  // namespace slipstream::triton
