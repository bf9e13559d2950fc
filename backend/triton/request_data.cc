// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/request_data.h"

#include <algorithm>

#include "triton/error.h"

namespace slipstream::triton {
namespace {

Status CheckSize(const Tensor& tensor) {
  const size_t size = ElementSize(tensor.dtype);
  const auto elements = static_cast<uint64_t>(tensor.elements);
  if (size == 0 || tensor.data.size() == elements * size) return Status::Ok();
  return Status::InvalidArgument(tensor.name + ": " + std::to_string(tensor.data.size()) +
                                 " bytes given, shape " + ShapeString(tensor.shape) + " of " +
                                 DataTypeName(tensor.dtype) + " has " +
                                 std::to_string(elements * size));
}

Status CountElements(Tensor* tensor) {
  constexpr int64_t kMax = int64_t{1} << 40;  // far above any message, far below overflow
  int64_t elements = 1;
  for (const int64_t dim : tensor->shape) {
    if (dim < 0 || (dim > 0 && elements > kMax / dim)) {
      return Status::InvalidArgument(tensor->name + ": impossible shape " +
                                     ShapeString(tensor->shape));
    }
    elements *= dim;
  }
  tensor->elements = elements;
  return Status::Ok();
}

}  // namespace

StatusOr<RequestData> RequestData::Create(Fields fields, bool batched) {
  int64_t batch = batched ? -1 : 1;
  for (const auto& tensor : fields.inputs) {
    if (Status status = CountElements(tensor.get()); !status.ok()) return status;
    if (Status status = CheckSize(*tensor); !status.ok()) return status;
    if (!batched) continue;
    const int64_t rows = tensor->shape.empty() ? 0 : tensor->shape[0];
    if (rows < 1) {
      return Status::InvalidArgument(tensor->name + ": shape " + ShapeString(tensor->shape) +
                                     " has no batch dimension; it must be at least 1");
    }
    if (batch >= 0 && rows != batch) {
      return Status::InvalidArgument(tensor->name + ": shape " + ShapeString(tensor->shape) +
                                     " has batch " + std::to_string(rows) + ", other inputs have " +
                                     std::to_string(batch));
    }
    batch = rows;
  }
  return RequestData(std::move(fields), std::max<int64_t>(batch, 1));
}

int64_t RequestData::num_bytes() const {
  size_t bytes = 0;
  for (const auto& tensor : fields_.inputs) bytes += tensor->data.size();
  return static_cast<int64_t>(bytes);
}

const Tensor* RequestData::Find(std::string_view name) const {
  for (const auto& tensor : fields_.inputs) {
    if (tensor->name == name) return tensor->elements > 0 ? tensor.get() : nullptr;
  }
  return nullptr;
}

bool RequestData::Has(std::string_view name) const {
  return std::any_of(fields_.inputs.begin(), fields_.inputs.end(),
                     [&](const auto& tensor) { return tensor->name == name; });
}

bool RequestData::Requested(std::string_view output) const {
  return std::find(fields_.outputs.begin(), fields_.outputs.end(), output) != fields_.outputs.end();
}

template <typename T>
StatusOr<std::vector<T>> RequestData::Row(std::string_view name, TRITONSERVER_DataType dtype,
                                          int64_t row) const {
  const Tensor* tensor = Find(name);
  if (tensor == nullptr) return std::vector<T>();
  if (tensor->dtype != dtype) {
    return Status::InvalidArgument(tensor->name + ": has type " + DataTypeName(tensor->dtype) +
                                   ", must be " + DataTypeName(dtype));
  }
  const int64_t count = tensor->elements / batch_;
  if constexpr (std::is_same_v<T, std::string>) {
    auto strings = ParseBytesTensor(*tensor);
    if (!strings.ok()) return strings.status();
    return std::vector<T>(std::make_move_iterator(strings->begin() + row * count),
                          std::make_move_iterator(strings->begin() + (row + 1) * count));
  } else {
    return CopyElements<T>(*tensor, row * count, count);
  }
}

template <typename T, typename Result>
StatusOr<std::optional<Result>> RequestData::Scalar(std::string_view name,
                                                    TRITONSERVER_DataType dtype,
                                                    int64_t row) const {
  auto values = Row<T>(name, dtype, row);
  if (!values.ok()) return values.status();
  if (values->empty()) return std::optional<Result>();
  if (values->size() != 1) {
    return Status::InvalidArgument(std::string(name) + ": shape " + ShapeString(Find(name)->shape) +
                                   " has " + std::to_string(values->size()) +
                                   " values per request, must have 1");
  }
  if constexpr (std::is_same_v<Result, bool>) {
    return std::optional<Result>((*values)[0] != 0);
  } else {
    return std::optional<Result>(std::move((*values)[0]));
  }
}

StatusOr<std::optional<int32_t>> RequestData::Int32(std::string_view name, int64_t row) const {
  return Scalar<int32_t, int32_t>(name, TRITONSERVER_TYPE_INT32, row);
}
StatusOr<std::optional<int64_t>> RequestData::Int64(std::string_view name, int64_t row) const {
  return Scalar<int64_t, int64_t>(name, TRITONSERVER_TYPE_INT64, row);
}
StatusOr<std::optional<uint64_t>> RequestData::Uint64(std::string_view name, int64_t row) const {
  return Scalar<uint64_t, uint64_t>(name, TRITONSERVER_TYPE_UINT64, row);
}
StatusOr<std::optional<float>> RequestData::Float(std::string_view name, int64_t row) const {
  return Scalar<float, float>(name, TRITONSERVER_TYPE_FP32, row);
}
StatusOr<std::optional<bool>> RequestData::Bool(std::string_view name, int64_t row) const {
  return Scalar<uint8_t, bool>(name, TRITONSERVER_TYPE_BOOL, row);
}
StatusOr<std::optional<std::string>> RequestData::String(std::string_view name, int64_t row) const {
  return Scalar<std::string, std::string>(name, TRITONSERVER_TYPE_BYTES, row);
}
StatusOr<std::vector<int32_t>> RequestData::Int32Row(std::string_view name, int64_t row) const {
  return Row<int32_t>(name, TRITONSERVER_TYPE_INT32, row);
}
StatusOr<std::vector<float>> RequestData::FloatRow(std::string_view name, int64_t row) const {
  return Row<float>(name, TRITONSERVER_TYPE_FP32, row);
}
StatusOr<std::vector<std::string>> RequestData::StringRow(std::string_view name,
                                                          int64_t row) const {
  return Row<std::string>(name, TRITONSERVER_TYPE_BYTES, row);
}

}  // namespace slipstream::triton
