// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

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

// nullptr if there is none. During a reload there are two of one name: this is the newer one.
std::shared_ptr<LlmService> FindLlm(const std::string& name);

}  // namespace slipstream::triton
