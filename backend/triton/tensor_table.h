// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "executor/status.h"
#include "triton/request_data.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

// What the shared library is, for one model of the repository.
enum class Role : uint8_t { kLlm, kTokenize, kDetokenize, kPipeline };
const char* RoleName(Role role);  // "llm", "tokenize", "detokenize", "pipeline"
StatusOr<Role> ParseRole(std::string_view name);

// What becomes of an input.
enum class Use : uint8_t {
  kServed,       // read by the role
  kNeutralOnly,  // only values that ask for nothing are accepted (see TensorRow::neutral)
  kRefused,      // UNSUPPORTED when it has elements
  kControl,      // Triton's own sequence controls, which mean nothing here
};

// One tensor of a role's interface. Everything that a model configuration may declare is here, so
// that every declared input is either honoured or refused by name.
struct TensorRow {
  const char* name;
  TRITONSERVER_DataType dtype;  // INVALID: any (logits, adapters and features come in several)
  const char* dims;             // as a configuration declares it, without the batch
  bool optional;                // inputs
  Use use;
  double neutral[2];    // kNeutralOnly
  const char* feature;  // kRefused, kNeutralOnly: what it belongs to, for the message
};

const std::vector<TensorRow>& InputRows(Role role);
const std::vector<TensorRow>& OutputRows(Role role);
const TensorRow* FindRow(const std::vector<TensorRow>& rows, std::string_view name);

// Refuses what the role does not serve (kUnsupported), does not know, or misses (kInvalidArgument).
// The errors name the input.
Status CheckInputs(Role role, const RequestData& request);
// Its halves: what is given is served, nothing is missing.
Status CheckGiven(Role role, const RequestData& request);
Status CheckRequired(Role role, const RequestData& request);

// A tensor as declared in a model configuration.
struct DeclaredTensor {
  std::string name;
  std::string dtype;  // "INT32", "STRING", …
};

// Every declared tensor must be in the table with the same type, every required input declared.
Status CheckDeclaration(Role role, const std::vector<DeclaredTensor>& inputs,
                        const std::vector<DeclaredTensor>& outputs);

}  // namespace slipstream::triton
