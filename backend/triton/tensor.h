// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "executor/status.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

// Triton's data type of a C++ element type.
template <typename T>
constexpr TRITONSERVER_DataType DataTypeOf() {
  if constexpr (std::is_same_v<T, bool>) return TRITONSERVER_TYPE_BOOL;
  if constexpr (std::is_same_v<T, uint8_t>) return TRITONSERVER_TYPE_UINT8;
  if constexpr (std::is_same_v<T, int32_t>) return TRITONSERVER_TYPE_INT32;
  if constexpr (std::is_same_v<T, int64_t>) return TRITONSERVER_TYPE_INT64;
  if constexpr (std::is_same_v<T, uint64_t>) return TRITONSERVER_TYPE_UINT64;
  if constexpr (std::is_same_v<T, float>) return TRITONSERVER_TYPE_FP32;
  return TRITONSERVER_TYPE_INVALID;
}

// Bytes per element; 0 for BYTES (variable) and INVALID.
size_t ElementSize(TRITONSERVER_DataType dtype);
// As Triton's configurations write it without TYPE_: "INT32", "STRING", …
const char* DataTypeName(TRITONSERVER_DataType dtype);
std::string ShapeString(const std::vector<int64_t>& shape);

// One input of one request. `data` points into Triton's buffer, or into `storage` when the buffer
// came in pieces; it is valid while the Tensor and the request live, and need not be aligned.
struct Tensor {
  std::string name;
  TRITONSERVER_DataType dtype = TRITONSERVER_TYPE_INVALID;
  std::vector<int64_t> shape;
  std::string_view data;
  std::string storage;
  int64_t elements = 0;

  Tensor() = default;
  Tensor(Tensor&&) = delete;  // `data` may point into `storage`
};

// The elements [first, first + count) of a fixed-size tensor of T; the caller has checked dtype and
// bounds.
template <typename T>
std::vector<T> CopyElements(const Tensor& tensor, int64_t first, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  static_assert(!std::is_same_v<T, bool>, "use uint8_t");
  if (count > 0) {
    std::memcpy(values.data(), tensor.data.data() + static_cast<size_t>(first) * sizeof(T),
                static_cast<size_t>(count) * sizeof(T));
  }
  return values;
}

// All strings of a BYTES tensor (each a little-endian uint32 length, then that many bytes).
// kInvalidArgument, naming the tensor, when the lengths do not add up.
StatusOr<std::vector<std::string>> ParseBytesTensor(const Tensor& tensor);
std::string SerializeBytesTensor(const std::vector<std::string>& strings);

// One output of one response.
struct OutputTensor {
  const char* name = nullptr;  // static
  TRITONSERVER_DataType dtype = TRITONSERVER_TYPE_INVALID;
  std::vector<int64_t> shape;
  std::string data;

  template <typename T>
  static OutputTensor Of(const char* name, std::vector<int64_t> shape, const T* values,
                         size_t count) {
    return {name, DataTypeOf<T>(), std::move(shape),
            std::string(reinterpret_cast<const char*>(values), count * sizeof(T))};
  }
  static OutputTensor OfStrings(const char* name, std::vector<int64_t> shape,
                                const std::vector<std::string>& strings) {
    return {name, TRITONSERVER_TYPE_BYTES, std::move(shape), SerializeBytesTensor(strings)};
  }
};

}  // namespace slipstream::triton
