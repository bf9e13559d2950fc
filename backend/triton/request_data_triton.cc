// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/error.h"
#include "triton/request_data.h"

namespace slipstream::triton {
namespace {

#define RETURN_IF_TRITON_ERROR(call)                                           \
  do {                                                                         \
    if (Status status_ = FromTritonError(call); !status_.ok()) return status_; \
  } while (false)

Status ReadBuffers(TRITONBACKEND_Input* input, uint32_t buffers, Tensor* tensor) {
  for (uint32_t i = 0; i < buffers; ++i) {
    const void* data = nullptr;
    uint64_t size = 0;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    RETURN_IF_TRITON_ERROR(TRITONBACKEND_InputBuffer(input, i, &data, &size, &memory, &memory_id));
    if (memory == TRITONSERVER_MEMORY_GPU) {
      return Status::Unsupported(tensor->name + ": lies in the memory of GPU " +
                                 std::to_string(memory_id) +
                                 "; inputs must be in host or pinned memory");
    }
    const std::string_view piece(static_cast<const char*>(data), size);
    if (buffers == 1) {
      tensor->data = piece;
    } else {
      tensor->storage.append(piece);
    }
  }
  if (buffers > 1) tensor->data = tensor->storage;
  return Status::Ok();
}

StatusOr<std::unique_ptr<Tensor>> ReadInput(TRITONBACKEND_Input* input) {
  auto tensor = std::make_unique<Tensor>();
  const char* name = nullptr;
  const int64_t* shape = nullptr;
  uint32_t dims = 0;
  uint64_t bytes = 0;
  uint32_t buffers = 0;
  RETURN_IF_TRITON_ERROR(
      TRITONBACKEND_InputProperties(input, &name, &tensor->dtype, &shape, &dims, &bytes, &buffers));
  tensor->name = name;
  tensor->shape.assign(shape, shape + dims);
  if (Status status = ReadBuffers(input, buffers, tensor.get()); !status.ok()) return status;
  return tensor;
}

std::string ParameterText(TRITONSERVER_ParameterType type, const void* value) {
  switch (type) {
    case TRITONSERVER_PARAMETER_STRING:
      return static_cast<const char*>(value);
    case TRITONSERVER_PARAMETER_INT:
      return std::to_string(*static_cast<const int64_t*>(value));
    case TRITONSERVER_PARAMETER_BOOL:
      return *static_cast<const bool*>(value) ? "true" : "false";
    case TRITONSERVER_PARAMETER_DOUBLE:
      return std::to_string(*static_cast<const double*>(value));
    case TRITONSERVER_PARAMETER_BYTES:
      break;
  }
  return "";
}

Status ReadParameters(TRITONBACKEND_Request* request, RequestData::Fields* fields) {
  uint32_t count = 0;
  RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestParameterCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* key = nullptr;
    TRITONSERVER_ParameterType type = TRITONSERVER_PARAMETER_STRING;
    const void* value = nullptr;
    RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestParameter(request, i, &key, &type, &value));
    fields->parameters[key] = ParameterText(type, value);
  }
  return Status::Ok();
}

Status ReadTensors(TRITONBACKEND_Request* request, RequestData::Fields* fields) {
  uint32_t count = 0;
  RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestInputCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    TRITONBACKEND_Input* input = nullptr;
    RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestInputByIndex(request, i, &input));
    auto tensor = ReadInput(input);
    if (!tensor.ok()) return tensor.status();
    fields->inputs.push_back(std::move(*tensor));
  }
  RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestOutputCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestOutputName(request, i, &name));
    fields->outputs.emplace_back(name);
  }
  return Status::Ok();
}

}  // namespace

StatusOr<RequestData> ReadTritonRequest(TRITONBACKEND_Request* request, bool batched) {
  RequestData::Fields fields;
  const char* id = nullptr;
  RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestId(request, &id));
  if (id != nullptr) fields.id = id;
  RETURN_IF_TRITON_ERROR(TRITONBACKEND_RequestIsCancelled(request, &fields.cancelled));
  RETURN_IF_TRITON_ERROR(
      TRITONBACKEND_InferenceRequestTimeoutMicroseconds(request, &fields.timeout_us));
  if (Status status = ReadParameters(request, &fields); !status.ok()) return status;
  if (Status status = ReadTensors(request, &fields); !status.ok()) return status;
  return RequestData::Create(std::move(fields), batched);
}

}  // namespace slipstream::triton
