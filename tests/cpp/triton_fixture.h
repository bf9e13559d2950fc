// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "triton/request_data.h"
#include "triton/tensor_table.h"
#include "triton_host.h"

namespace slipstream::triton {

// Builds RequestData from plain values.
class RequestBuilder {
 public:
  RequestBuilder& Add(host::Output tensor) {
    auto input = std::make_unique<Tensor>();
    input->name = tensor.name;
    input->dtype = tensor.dtype;
    input->shape = tensor.shape;
    input->storage = tensor.data;
    input->data = input->storage;
    fields_.inputs.push_back(std::move(input));
    return *this;
  }
  template <typename T>
  RequestBuilder& Add(const std::string& name, std::vector<int64_t> shape,
                      const std::vector<T>& values) {
    return Add(host::In<T>(name, std::move(shape), values));
  }
  RequestBuilder& Int(const std::string& name, int32_t value) {
    return Add<int32_t>(name, {1, 1}, {value});
  }
  RequestBuilder& Float(const std::string& name, float value) {
    return Add<float>(name, {1, 1}, {value});
  }
  RequestBuilder& Bool(const std::string& name, bool value) {
    return Add(host::InBool(name, value));
  }
  RequestBuilder& Strings(const std::string& name, const std::vector<std::string>& values) {
    return Add(host::InStrings(name, {1, static_cast<int64_t>(values.size())}, values));
  }
  RequestBuilder& Prompt(const std::vector<int32_t>& ids, int32_t max_tokens) {
    const auto size = static_cast<int32_t>(ids.size());
    Add<int32_t>("input_ids", {1, size}, ids);
    Int("input_lengths", size);
    return Int("request_output_len", max_tokens);
  }
  RequestBuilder& Id(const std::string& id) {
    fields_.id = id;
    return *this;
  }
  RequestBuilder& Parameter(const std::string& key, const std::string& value) {
    fields_.parameters[key] = value;
    return *this;
  }
  RequestBuilder& Timeout(uint64_t us) {
    fields_.timeout_us = us;
    return *this;
  }
  RequestBuilder& Outputs(std::vector<std::string> names) {
    fields_.outputs = std::move(names);
    return *this;
  }
  // As when the client names none.
  RequestBuilder& AllOutputs(Role role) {
    for (const TensorRow& row : OutputRows(role)) fields_.outputs.emplace_back(row.name);
    return *this;
  }
  StatusOr<RequestData> TryBuild(bool batched = true) {
    return RequestData::Create(std::move(fields_), batched);
  }
  RequestData Build(bool batched = true) { return std::move(TryBuild(batched)).value(); }

 private:
  RequestData::Fields fields_;
};

}  // namespace slipstream::triton
