// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "triton/model_config.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {

// A configuration with every tensor that the role knows, batched and decoupled.
inline ModelConfig Declared(Role role, const std::string& name) {
  ModelConfig config;
  config.name = name;
  config.batched = true;
  config.decoupled = true;
  for (const TensorRow& row : InputRows(role)) {
    const bool any = row.dtype == TRITONSERVER_TYPE_INVALID;
    config.inputs.push_back({row.name, any ? "FP16" : DataTypeName(row.dtype)});
  }
  for (const TensorRow& row : OutputRows(role)) {
    const bool any = row.dtype == TRITONSERVER_TYPE_INVALID;
    config.outputs.push_back({row.name, any ? "FP32" : DataTypeName(row.dtype)});
  }
  return config;
}

}  // namespace slipstream::triton
