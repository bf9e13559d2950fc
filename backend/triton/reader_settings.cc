// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "triton/request_reader.h"

namespace slipstream::triton {
namespace {

StatusOr<TRITONSERVER_DataType> LogitsType(const ModelConfig& config, const char* output) {
  for (const DeclaredTensor& tensor : config.outputs) {
    if (tensor.name != output || tensor.dtype == "FP32") continue;
    if (tensor.dtype == "FP16") return TRITONSERVER_TYPE_FP16;
    return Status::InvalidArgument("output '" + tensor.name + "': declared TYPE_" + tensor.dtype +
                                   ", must be TYPE_FP32 or TYPE_FP16");
  }
  return TRITONSERVER_TYPE_FP32;
}

}  // namespace

StatusOr<ReaderSettings> ReaderSettings::Of(const ModelConfig& config) {
  const auto context = LogitsType(config, "context_logits");
  if (!context.ok()) return context.status();
  const auto generation = LogitsType(config, "generation_logits");
  if (!generation.ok()) return generation.status();
  ReaderSettings settings;
  settings.batched = config.batched;
  settings.decoupled = config.decoupled;
  settings.num_declared_outputs = config.outputs.size();
  settings.context_logits_dtype = *context;
  settings.generation_logits_dtype = *generation;
  return settings;
}

}  // namespace slipstream::triton
