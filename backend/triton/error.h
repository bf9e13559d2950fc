// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string>

#include "executor/status.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

// The one place where a Status becomes Triton's error. nullptr when ok; otherwise the caller (or
// whoever it is handed to) owns the result.
//
// kDeadlineExceeded becomes UNAVAILABLE, which is what Triton itself answers when a request's
// timeout expires in its queue: clients that retry on one retry on both. (Triton's C API has no
// deadline code.)
TRITONSERVER_Error* ToTritonError(const Status& status);

// Takes ownership of `error`; ok for nullptr.
Status FromTritonError(TRITONSERVER_Error* error);

void LogMessage(TRITONSERVER_LogLevel level, const std::string& message);
inline void LogInfo(const std::string& message) { LogMessage(TRITONSERVER_LOG_INFO, message); }
inline void LogWarning(const std::string& message) { LogMessage(TRITONSERVER_LOG_WARN, message); }
inline void LogError(const std::string& message) { LogMessage(TRITONSERVER_LOG_ERROR, message); }

// For calls whose failure nothing can be done about: logs it.
void LogIfError(TRITONSERVER_Error* error, const char* doing);

// Runs the body of an API function: nothing it throws crosses the C boundary.
template <typename Body>
TRITONSERVER_Error* Guarded(const char* function, Body&& body) noexcept {
  try {
    return ToTritonError(body());
  } catch (const std::exception& e) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL,
                                 (std::string(function) + ": " + e.what()).c_str());
  } catch (...) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, function);
  }
}

}  // namespace slipstream::triton
