// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "executor/status.h"
#include "triton/tensor.h"

namespace slipstream::triton {

// What a Triton request carries, checked as far as can be without knowing what it means: every
// tensor lies in host memory and has as many bytes as its type and shape say, and all tensors agree
// on the batch size. Roles read it with the typed accessors, whose errors name the tensor, the
// value and what is allowed.
//
// A tensor with no elements is as good as absent: ensembles and older clients send empty ones.
class RequestData {
 public:
  // Only what belongs to Triton's request; see ReadTritonRequest.
  struct Fields {
    std::string id;
    bool cancelled = false;
    uint64_t timeout_us = 0;  // 0 = none
    std::vector<std::unique_ptr<Tensor>> inputs;
    std::vector<std::string> outputs;               // the requested ones; all when none was named
    std::map<std::string, std::string> parameters;  // scalars of any type, as text
  };

  // `batched`: the model has max_batch_size > 0, so that the first dimension of every tensor is the
  // batch.
  static StatusOr<RequestData> Create(Fields fields, bool batched);

  // What it was made of.
  Fields Release() && { return std::move(fields_); }

  const std::string& id() const { return fields_.id; }
  bool cancelled() const { return fields_.cancelled; }
  uint64_t timeout_us() const { return fields_.timeout_us; }
  const std::vector<std::string>& outputs() const { return fields_.outputs; }
  const std::map<std::string, std::string>& parameters() const { return fields_.parameters; }
  const std::vector<std::unique_ptr<Tensor>>& inputs() const { return fields_.inputs; }
  int64_t batch() const { return batch_; }
  int64_t num_bytes() const;  // of all inputs

  // The tensor, or nullptr if it is absent or has no elements.
  const Tensor* Find(std::string_view name) const;
  // Present, whatever its size.
  bool Has(std::string_view name) const;
  bool Requested(std::string_view output) const;

  // A tensor of one element per row. nullopt if absent; an error for another type or size.
  StatusOr<std::optional<int32_t>> Int32(std::string_view name, int64_t row) const;
  StatusOr<std::optional<int64_t>> Int64(std::string_view name, int64_t row) const;
  StatusOr<std::optional<uint64_t>> Uint64(std::string_view name, int64_t row) const;
  StatusOr<std::optional<float>> Float(std::string_view name, int64_t row) const;
  StatusOr<std::optional<bool>> Bool(std::string_view name, int64_t row) const;
  StatusOr<std::optional<std::string>> String(std::string_view name, int64_t row) const;

  // One row of a tensor of any shape; empty if absent.
  StatusOr<std::vector<int32_t>> Int32Row(std::string_view name, int64_t row) const;
  StatusOr<std::vector<float>> FloatRow(std::string_view name, int64_t row) const;
  StatusOr<std::vector<std::string>> StringRow(std::string_view name, int64_t row) const;

 private:
  RequestData(Fields fields, int64_t batch) : fields_(std::move(fields)), batch_(batch) {}
  template <typename T>
  StatusOr<std::vector<T>> Row(std::string_view name, TRITONSERVER_DataType dtype,
                               int64_t row) const;
  template <typename T, typename Result>
  StatusOr<std::optional<Result>> Scalar(std::string_view name, TRITONSERVER_DataType dtype,
                                         int64_t row) const;

  Fields fields_;
  int64_t batch_ = 1;
};

// Reads everything that is in `request`, which keeps its ownership and must outlive the result.
StatusOr<RequestData> ReadTritonRequest(TRITONBACKEND_Request* request, bool batched);

}  // namespace slipstream::triton
