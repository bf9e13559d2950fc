// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "triton/request_data.h"

namespace slipstream::triton {

// Reads the fields of one row. The first error sticks: whoever reads asks once, at the end.
class FieldReader {
 public:
  FieldReader(const RequestData& request, int64_t row) : request_(request), row_(row) {}

  std::optional<int32_t> Int32(std::string_view name) { return Take(request_.Int32(name, row_)); }
  std::optional<uint64_t> Uint64(std::string_view name) {
    return Take(request_.Uint64(name, row_));
  }
  std::optional<float> Float(std::string_view name) { return Take(request_.Float(name, row_)); }
  std::optional<bool> Bool(std::string_view name) { return Take(request_.Bool(name, row_)); }
  std::optional<std::string> String(std::string_view name) {
    return Take(request_.String(name, row_));
  }
  std::vector<int32_t> Int32Row(std::string_view name) {
    return Take(request_.Int32Row(name, row_));
  }
  std::vector<float> FloatRow(std::string_view name) { return Take(request_.FloatRow(name, row_)); }
  std::vector<std::string> StringRow(std::string_view name) {
    return Take(request_.StringRow(name, row_));
  }

  // Set only when the field is given.
  void Set(std::string_view name, int32_t* value) { Assign(Int32(name), value); }
  void Set(std::string_view name, float* value) { Assign(Float(name), value); }
  void Set(std::string_view name, bool* value) { Assign(Bool(name), value); }

  void Fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const Status& status() const { return status_; }

 private:
  template <typename T>
  T Take(StatusOr<T> value) {
    if (value.ok()) return std::move(value).value();
    Fail(value.status());
    return T();
  }
  template <typename T>
  static void Assign(std::optional<T> given, T* value) {
    if (given.has_value()) *value = *given;
  }

  const RequestData& request_;
  const int64_t row_;
  Status status_;
};

// Reads fields that hold for a request as a whole: all its rows must say the same. The first error
// sticks here, too.
class UniformFieldReader {
 public:
  explicit UniformFieldReader(const RequestData& request) : request_(request) {}

  std::optional<bool> Bool(std::string_view name) {
    const auto first = request_.Bool(name, 0);
    if (!first.ok()) Fail(first.status());
    if (!first.ok() || !first->has_value()) return std::nullopt;
    for (int64_t row = 1; row < request_.batch(); ++row) {
      const auto other = request_.Bool(name, row);  // of the same tensor: it is there
      if (other.ok() && **other != **first) Fail(Differ(name, **first, row));
    }
    return *first;
  }

  void Fail(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const Status& status() const { return status_; }

 private:
  static Status Differ(std::string_view name, bool first, int64_t row) {
    const auto text = [](bool value) { return std::string(value ? "true" : "false"); };
    return Status::InvalidArgument(std::string(name) + ": " + text(first) + " in row 0, " +
                                   text(!first) + " in row " + std::to_string(row) +
                                   "; must be the same in all rows of a request");
  }

  const RequestData& request_;
  Status status_;
};

}  // namespace slipstream::triton
