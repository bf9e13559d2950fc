// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "executor/status.h"
#include "triton/model_config.h"
#include "triton/parameters.h"

namespace slipstream::triton {

// Refuses fields of instance_group that the server takes and nothing here heeds.
Status CheckInstanceGroups(const ModelConfig& config);

// Role `llm`: one instance, and if it is of KIND_GPU, on the one GPU that it names, which becomes
// the worker's device. Any other kind leaves the device to the parameter.
Status PlaceWorker(const ModelConfig& config, LlmParameters* parameters);

}  // namespace slipstream::triton
