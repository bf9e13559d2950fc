// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "executor/status.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {

// One of instance_group. The server has completed it: KIND_AUTO has become KIND_GPU where it sees a
// GPU, else KIND_CPU, and KIND_GPU without GPUs has got all that it sees.
struct InstanceGroup {
  std::string kind;           // "KIND_GPU"
  std::vector<int32_t> gpus;  // of KIND_GPU only; `count` instances on each
  std::string unheeded;       // a field that is set but means nothing here: "passive true"
};

// What the backend needs to know of a model's configuration (config.pbtxt).
struct ModelConfig {
  std::string name;
  int64_t version = 1;
  bool batched = false;  // max_batch_size > 0: tensors carry a batch dimension
  bool decoupled = false;
  bool dynamic_batching = false;
  bool preserve_ordering = false;  // of dynamic_batching
  std::vector<InstanceGroup> instance_groups;
  int instance_count = 1;  // of all groups
  std::vector<DeclaredTensor> inputs;
  std::vector<DeclaredTensor> outputs;
  // Set parameters only: an empty value and a placeholder that was never filled ("${…}") both mean
  // that the parameter is not set.
  std::map<std::string, std::string> parameters;
  // Where it comes from.
  std::string json;
  TRITONSERVER_Server* server = nullptr;

  // `json`: the ModelConfig message as Triton serializes it.
  static StatusOr<ModelConfig> FromJson(std::string_view json);
  static StatusOr<ModelConfig> Of(TRITONBACKEND_Model* model);
};

}  // namespace slipstream::triton
