// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/instance_groups.h"

#include <string>
#include <vector>

namespace slipstream::triton {
namespace {

std::string List(const std::vector<int32_t>& gpus) {
  std::string text;
  for (const int32_t gpu : gpus) text += (text.empty() ? "" : ", ") + std::to_string(gpu);
  return "[" + text + "]";
}

Status CheckOne(const ModelConfig& config) {
  if (config.instance_count == 1) return Status::Ok();
  const std::string limit = "role llm batches all requests in one executor, the limit is 1";
  for (const InstanceGroup& group : config.instance_groups) {
    if (group.gpus.size() < 2) continue;
    // Not necessarily the user's own list, so the other way out is told, too.
    return Status::Unsupported(
        "instance_group.gpus: " + List(group.gpus) + " of " + group.kind + " are " +
        std::to_string(config.instance_count) + " instances; " + limit +
        ". Where the configuration names no GPU, the server lists all: name one, or set kind "
        "KIND_CPU and the parameter device");
  }
  return Status::Unsupported("instance_group: " + std::to_string(config.instance_count) +
                             " instances; " + limit);
}

}  // namespace

Status CheckInstanceGroups(const ModelConfig& config) {
  for (const InstanceGroup& group : config.instance_groups) {
    if (group.unheeded.empty()) continue;
    return Status::Unsupported("instance_group." + group.unheeded +
                               ": is not supported, must be left out");
  }
  return Status::Ok();
}

Status PlaceWorker(const ModelConfig& config, LlmParameters* parameters) {
  if (Status s = CheckOne(config); !s.ok()) return s;
  for (const InstanceGroup& group : config.instance_groups) {
    if (group.gpus.empty()) continue;
    const std::string asked = "cuda:" + std::to_string(group.gpus[0]);
    std::string& device = parameters->worker.device;
    if (device != "auto" && device != "cuda" && device != asked) {
      return Status::InvalidArgument("instance_group.gpus: " + List(group.gpus) + " of " +
                                     group.kind + " means " + asked +
                                     ", but parameter device (or gpu_device_ids) means '" + device +
                                     "'; both must mean the same, or device must be auto");
    }
    device = asked;
  }
  return Status::Ok();
}

}  // namespace slipstream::triton
