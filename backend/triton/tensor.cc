// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/tensor.h"

namespace slipstream::triton {

size_t ElementSize(TRITONSERVER_DataType dtype) {
  switch (dtype) {
    case TRITONSERVER_TYPE_BOOL:
    case TRITONSERVER_TYPE_UINT8:
    case TRITONSERVER_TYPE_INT8:
      return 1;
    case TRITONSERVER_TYPE_UINT16:
    case TRITONSERVER_TYPE_INT16:
    case TRITONSERVER_TYPE_FP16:
    case TRITONSERVER_TYPE_BF16:
      return 2;
    case TRITONSERVER_TYPE_UINT32:
    case TRITONSERVER_TYPE_INT32:
    case TRITONSERVER_TYPE_FP32:
      return 4;
    case TRITONSERVER_TYPE_UINT64:
    case TRITONSERVER_TYPE_INT64:
    case TRITONSERVER_TYPE_FP64:
      return 8;
    case TRITONSERVER_TYPE_BYTES:
    case TRITONSERVER_TYPE_INVALID:
      break;
  }
  return 0;
}

const char* DataTypeName(TRITONSERVER_DataType dtype) {
  switch (dtype) {
    case TRITONSERVER_TYPE_BOOL:
      return "BOOL";
    case TRITONSERVER_TYPE_UINT8:
      return "UINT8";
    case TRITONSERVER_TYPE_UINT16:
      return "UINT16";
    case TRITONSERVER_TYPE_UINT32:
      return "UINT32";
    case TRITONSERVER_TYPE_UINT64:
      return "UINT64";
    case TRITONSERVER_TYPE_INT8:
      return "INT8";
    case TRITONSERVER_TYPE_INT16:
      return "INT16";
    case TRITONSERVER_TYPE_INT32:
      return "INT32";
    case TRITONSERVER_TYPE_INT64:
      return "INT64";
    case TRITONSERVER_TYPE_FP16:
      return "FP16";
    case TRITONSERVER_TYPE_FP32:
      return "FP32";
    case TRITONSERVER_TYPE_FP64:
      return "FP64";
    case TRITONSERVER_TYPE_BYTES:
      return "STRING";
    case TRITONSERVER_TYPE_BF16:
      return "BF16";
    case TRITONSERVER_TYPE_INVALID:
      break;
  }
  return "INVALID";
}

std::string ShapeString(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ",";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

StatusOr<std::vector<std::string>> ParseBytesTensor(const Tensor& tensor) {
  std::vector<std::string> strings;
  std::string_view rest = tensor.data;
  for (int64_t i = 0; i < tensor.elements; ++i) {
    uint32_t length = 0;
    if (rest.size() < sizeof(length)) {
      return Status::InvalidArgument(
          tensor.name + ": the data of " + std::to_string(tensor.data.size()) +
          " bytes ends in element " + std::to_string(i) + " of " + std::to_string(tensor.elements));
    }
    std::memcpy(&length, rest.data(), sizeof(length));
    rest.remove_prefix(sizeof(length));
    if (length > rest.size()) {
      return Status::InvalidArgument(tensor.name + ": element " + std::to_string(i) + " claims " +
                                     std::to_string(length) + " bytes, " +
                                     std::to_string(rest.size()) + " are left");
    }
    strings.emplace_back(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  if (!rest.empty()) {
    return Status::InvalidArgument(tensor.name + ": " + std::to_string(rest.size()) +
                                   " bytes follow the " + std::to_string(tensor.elements) +
                                   " elements of shape " + ShapeString(tensor.shape));
  }
  return strings;
}

std::string SerializeBytesTensor(const std::vector<std::string>& strings) {
  std::string data;
  for (const std::string& text : strings) {
    const auto length = static_cast<uint32_t>(text.size());
    data.append(reinterpret_cast<const char*>(&length), sizeof(length));
    data += text;
  }
  return data;
}

}  // namespace slipstream::triton
