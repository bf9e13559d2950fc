// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <stdexcept>

#include "allocation_faults.h"
#include "triton/error.h"
#include "triton/model.h"
#include "triton_host.h"

namespace triton = slipstream::triton;

struct TRITONSERVER_Server {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> calls;  // guarded by mutex
  bool serving = true;             // guarded by mutex

  bool IsServing() {
    const std::lock_guard<std::mutex> lock(mutex);
    return serving;
  }
  void Note(std::string call) {
    const std::lock_guard<std::mutex> lock(mutex);
    calls.push_back(std::move(call));
    changed.notify_all();
  }
};

namespace slipstream::triton::host {
namespace {

// What Triton's load comes down to for the backend.
Status Load(const std::string& json) {
  auto config = ModelConfig::FromJson(json);
  if (!config.ok()) return config.status();
  return Model::Create(std::move(config).value()).status();
}

// What the server answers to a call that it refuses; null: it does not.
TRITONSERVER_Error* Refuse(TRITONSERVER_Server* server) {
  if (server != nullptr && server->IsServing()) return nullptr;
  return TRITONSERVER_ErrorNew(
      TRITONSERVER_ERROR_UNAVAILABLE,
      server == nullptr ? "explicit model load / unload is not allowed" : "Server not ready");
}

}  // namespace

Repository::Repository() : server_(std::make_unique<TRITONSERVER_Server>()) {}
Repository::~Repository() = default;

void Repository::SetServing(bool serving) {
  const std::lock_guard<std::mutex> lock(server_->mutex);
  server_->serving = serving;
}

std::vector<std::string> Repository::WaitCalls(size_t count) {
  std::unique_lock<std::mutex> lock(server_->mutex);
  if (!server_->changed.wait_for(lock, std::chrono::seconds(20),
                                 [&] { return server_->calls.size() >= count; })) {
    throw std::runtime_error("no " + std::to_string(count) + " calls within 20 s");
  }
  return server_->calls;
}

}  // namespace slipstream::triton::host

extern "C" {

TRITONSERVER_Error* TRITONSERVER_ServerModelIsReady(TRITONSERVER_Server* server, const char* name,
                                                    const int64_t, bool* ready) {
  const slipstream::FaultPause pause;
  if (*name != '\0') throw std::logic_error("asked for a model that a newer server would ask");
  *ready = false;
  return server == nullptr ? nullptr : triton::host::Refuse(server);
}
TRITONSERVER_Error* TRITONSERVER_ServerUnloadModel(TRITONSERVER_Server* server, const char* name) {
  const slipstream::FaultPause pause;
  if (TRITONSERVER_Error* refusal = triton::host::Refuse(server)) return refusal;
  server->Note(std::string("unload ") + name);
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_ServerLoadModelWithParameters(
    TRITONSERVER_Server* server, const char* name, const TRITONSERVER_Parameter** parameters,
    const uint64_t count) {
  const slipstream::FaultPause pause;
  if (TRITONSERVER_Error* refusal = triton::host::Refuse(server)) return refusal;
  if (count != 1 || parameters[0]->name != "config") {
    throw std::logic_error("a load takes one parameter, config");
  }
  const slipstream::Status status = triton::host::Load(parameters[0]->value);
  server->Note(std::string("load ") + name + ": " + status.message());
  if (status.ok()) return nullptr;
  const std::string message = std::string("failed to load '") + name + "', " + status.message();
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INVALID_ARG, message.c_str());
}

}  // extern "C"
