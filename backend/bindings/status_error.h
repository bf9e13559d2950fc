// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <utility>

#include "executor/status.h"

namespace slipstream {

// The caller's mistakes become ValueError, everything else RuntimeError.
inline void ThrowIfError(const Status& status) {
  if (status.ok()) return;
  if (status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kUnsupported) {
    throw pybind11::value_error(status.message());
  }
  throw std::runtime_error(status.message());
}

template <typename T>
T ValueOrThrow(StatusOr<T> result) {
  ThrowIfError(result.status());
  return std::move(result).value();
}

}  // namespace slipstream
