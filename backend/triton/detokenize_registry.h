// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "executor/status.h"

namespace slipstream::triton {

// A loaded model of role `detokenize` and its parameter skip_special_tokens. TensorRT-LLM's
// repositories set that parameter there alone; but role `llm` settles the text, and asks here what
// holds when neither its own parameters nor the request say so.
class DetokenizeRegistration final {
 public:
  DetokenizeRegistration(const std::string& name, bool skip_special_tokens);
  ~DetokenizeRegistration();
  DetokenizeRegistration(const DetokenizeRegistration&) = delete;
  DetokenizeRegistration& operator=(const DetokenizeRegistration&) = delete;
};

// What the models agree on, the newest of each name; true when there is none. kInvalidArgument when
// they differ.
StatusOr<bool> AgreedSkipSpecialTokens();

}  // namespace slipstream::triton
