// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/model_config.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "triton/error.h"

namespace slipstream::triton {
namespace {

using nlohmann::json;

// An int32, which protobuf may write as a string in JSON. Throws what FromJson tells.
int32_t ToInt(const json& field, const char* key) {
  const double value = field.is_string() ? static_cast<double>(std::stoll(field.get<std::string>()))
                                         : field.get<double>();
  if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
    throw std::out_of_range(std::string(key) + " is " + field.dump() + ", which is no int32");
  }
  return static_cast<int32_t>(value);
}

int32_t ReadInt(const json& object, const char* key) {
  const auto field = object.find(key);
  return field == object.end() ? 0 : ToInt(*field, key);
}

std::vector<DeclaredTensor> ReadTensors(const json& config, const char* key) {
  std::vector<DeclaredTensor> tensors;
  for (const json& entry : config.value(key, json::array())) {
    std::string dtype = entry.value("data_type", "");
    if (dtype.rfind("TYPE_", 0) == 0) dtype.erase(0, 5);
    tensors.push_back({entry.value("name", ""), dtype});
  }
  return tensors;
}

bool IsSet(const std::string& value) {
  return value.find_first_not_of(" \t\r\n") != std::string::npos &&
         value.find("${") == std::string::npos;
}

bool IsGiven(const json& field) {
  if (field.is_boolean()) return field.get<bool>();
  return field.is_string() ? !field.get_ref<const std::string&>().empty() : !field.empty();
}

// A field that the server takes but does not carry out for this backend: it pins only its own
// threads by host_policy and counts only calls that return at once by rate_limiter, knows the other
// two for TensorRT alone, and crashes at a request for a model whose instances are all passive.
std::string Unheeded(const json& group) {
  for (const char* key :
       {"passive", "host_policy", "rate_limiter", "secondary_devices", "profile"}) {
    const auto field = group.find(key);
    if (field != group.end() && IsGiven(*field)) return std::string(key) + " " + field->dump();
  }
  return "";
}

InstanceGroup ReadGroup(const json& entry) {
  InstanceGroup group;
  group.kind = entry.value("kind", "");
  if (group.kind == "KIND_GPU") {
    for (const json& gpu : entry.value("gpus", json::array())) {
      group.gpus.push_back(ToInt(gpu, "gpus"));
    }
  }
  group.unheeded = Unheeded(entry);
  return group;
}

void ReadGroups(const json& config, ModelConfig* result) {
  int64_t instances = 0;
  for (const json& entry : config.value("instance_group", json::array())) {
    InstanceGroup group = ReadGroup(entry);
    const auto places = static_cast<int64_t>(std::max<size_t>(group.gpus.size(), 1));
    instances += places * ReadInt(entry, "count");
    result->instance_groups.push_back(std::move(group));
  }
  if (instances > std::numeric_limits<int>::max()) {
    throw std::out_of_range("instance_group has " + std::to_string(instances) + " instances");
  }
  if (instances > 0) result->instance_count = static_cast<int>(instances);
}

ModelConfig Read(const json& config) {
  ModelConfig result;
  result.name = config.value("name", "");
  result.batched = ReadInt(config, "max_batch_size") > 0;
  if (const auto policy = config.find("model_transaction_policy"); policy != config.end()) {
    result.decoupled = policy->value("decoupled", false);
  }
  if (const auto batching = config.find("dynamic_batching"); batching != config.end()) {
    result.dynamic_batching = true;
    result.preserve_ordering = batching->value("preserve_ordering", false);
  }
  ReadGroups(config, &result);
  result.inputs = ReadTensors(config, "input");
  result.outputs = ReadTensors(config, "output");
  const json parameters = config.value("parameters", json::object());
  for (const auto& [key, entry] : parameters.items()) {
    const std::string value = entry.value("string_value", "");
    if (IsSet(value)) result.parameters[key] = value;
  }
  return result;
}

}  // namespace

StatusOr<ModelConfig> ModelConfig::FromJson(std::string_view text) {
  try {
    ModelConfig config = Read(json::parse(text));
    config.json = text;
    return config;
  } catch (const std::exception& e) {
    return Status::Internal(std::string("model configuration: ") + e.what());
  }
}

StatusOr<ModelConfig> ModelConfig::Of(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message = nullptr;
  if (Status s = FromTritonError(TRITONBACKEND_ModelConfig(model, 1, &message)); !s.ok()) return s;
  const char* base = nullptr;
  size_t size = 0;
  Status status = FromTritonError(TRITONSERVER_MessageSerializeToJson(message, &base, &size));
  const std::string text = status.ok() ? std::string(base, size) : std::string();
  LogIfError(TRITONSERVER_MessageDelete(message), "deleting the configuration message");
  if (!status.ok()) return status;
  auto config = FromJson(text);
  if (!config.ok()) return config;
  status = FromTritonError(TRITONBACKEND_ModelServer(model, &config->server));
  if (!status.ok()) return status;
  uint64_t version = 1;
  status = FromTritonError(TRITONBACKEND_ModelVersion(model, &version));
  if (!status.ok()) return status;
  config->version = static_cast<int64_t>(version);
  return config;
}

}  // namespace slipstream::triton
