// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "triton/model_config.h"

namespace slipstream::triton {

class LlmService;

// Makes a loaded model of role `llm` known by its name to the whole process, for as long as this
// lives. Roles are separate models, which Triton loads, unloads and reloads each on its own.
class LlmRegistration final {
 public:
  LlmRegistration(const std::string& name, const std::shared_ptr<LlmService>& service);
  ~LlmRegistration();
  LlmRegistration(const LlmRegistration&) = delete;
  LlmRegistration& operator=(const LlmRegistration&) = delete;

 private:
  const LlmService* const service_;  // only its address
};

// The same for a model of role `pipeline` and the `llm` that it hands its requests to.
class PipelineRegistration final {
 public:
  // stop: ends the requests with this id that have not reached the `llm`; called on any thread,
  // must not call back.
  using Stop = std::function<void(const std::string& id)>;
  PipelineRegistration(const std::string& llm, const ModelConfig* config, Stop stop);
  ~PipelineRegistration();
  PipelineRegistration(const PipelineRegistration&) = delete;
  PipelineRegistration& operator=(const PipelineRegistration&) = delete;

 private:
  const ModelConfig* const config_;
};

// While it lives, a model of role `llm` and this name is being loaded.
class LlmLoading final {
 public:
  explicit LlmLoading(const std::string& name);
  ~LlmLoading();
  LlmLoading(const LlmLoading&) = delete;
  LlmLoading& operator=(const LlmLoading&) = delete;

 private:
  const std::string name_;
};

// nullptr if there is none. During a reload there are two of one name: this is the newer one.
std::shared_ptr<LlmService> FindLlm(const std::string& name);

// Every one that is there, oldest first, those of one name too.
std::vector<std::shared_ptr<LlmService>> AllLlms();

// Whether an `llm` is being loaded, of whatever name.
bool IsAnyLlmLoading();

// Waits while an `llm` of this name is being loaded, or is about to be within `start_ms`; returns
// at once when there is one.
void WaitForLlm(const std::string& name, int start_ms);

// Whether the server means this one by its name: no other was loaded since, none is being loaded.
bool IsCurrentLlm(const std::string& name, const LlmService* service);

// Tells every pipeline before this `llm`.
void StopBeforeLlm(const std::string& llm, const std::string& id);

// Copies, since they can be unloaded at any time.
std::vector<ModelConfig> PipelinesOf(const std::string& llm);

}  // namespace slipstream::triton
