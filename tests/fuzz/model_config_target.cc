// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/model_config.h"

#include <string>
#include <vector>

#include "targets.h"
#include "triton/instance_groups.h"
#include "triton/request_reader.h"
#include "triton/tensor_table.h"
#include "triton/withdrawal.h"

namespace slipstream::fuzz {
namespace {

using triton::ModelConfig;
using triton::Role;

void Run(const uint8_t* data, size_t size) {
  const auto config = ModelConfig::FromJson(AsText(data, size));
  if (!config.ok()) {
    Require(config.status().message().rfind("model configuration: ", 0) == 0, "it says of what");
    return;
  }
  Require(config->instance_count >= 1, "there is an instance");
  for (const auto& [key, value] : config->parameters) {
    Require(value.find("${") == std::string::npos, "a placeholder is no value");
    Require(value.find_first_not_of(" \t\r\n") != std::string::npos, "an empty value is none");
  }
  for (const Role role : {Role::kLlm, Role::kTokenize, Role::kDetokenize, Role::kPipeline}) {
    const Status status = CheckDeclaration(role, config->inputs, config->outputs);
    Require(status.ok() || status.code() == StatusCode::kInvalidArgument, "the caller's");
  }
  static_cast<void>(triton::ReaderSettings::Of(*config));
  static_cast<void>(triton::CheckNotWithdrawn(*config));
  static_cast<void>(triton::CheckInstanceGroups(*config));
  triton::LlmParameters parameters;
  if (triton::PlaceWorker(*config, &parameters).ok()) {
    Require(config->instance_count == 1, "an llm has one instance");
  }
}

std::vector<std::string> Seeds() {
  return {
      R"({"name": "llm", "backend": "slipstream", "max_batch_size": 8,
          "model_transaction_policy": {"decoupled": true},
          "dynamic_batching": {"preserve_ordering": true, "max_queue_delay_microseconds": "100"},
          "instance_group": [{"kind": "KIND_GPU", "count": 1, "gpus": [1], "passive": false}],
          "input": [{"name": "input_ids", "data_type": "TYPE_INT32", "dims": [-1]},
                    {"name": "input_lengths", "data_type": "TYPE_INT32", "dims": [1]},
                    {"name": "request_output_len", "data_type": "TYPE_INT32", "dims": [1]}],
          "output": [{"name": "output_ids", "data_type": "TYPE_INT32", "dims": [-1, -1]},
                     {"name": "context_logits", "data_type": "TYPE_FP16", "dims": [-1, -1]}],
          "parameters": {"role": {"string_value": "llm"}, "model": {"string_value": "${dir}"}}})",
      R"({"name": "ensemble", "max_batch_size": "0", "instance_group": [{"count": "2"}],
          "input": [{"name": "text_input", "data_type": "TYPE_STRING"}],
          "parameters": {"role": {"string_value": "pipeline"}, "empty": {"string_value": " "}}})"};
}

}  // namespace

FuzzTarget ModelConfigTarget() { return {"model_config", Run, Seeds}; }

}  // namespace slipstream::fuzz
