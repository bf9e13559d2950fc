// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string_view>

#include "executor/status.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

// The one place where a Status becomes Triton's error. nullptr when ok; otherwise the caller (or
// whoever it is handed to) owns the result.
//
// Messages may quote what a client sent: they are cut at a length that every client can receive,
// and are always UTF-8, which Triton's streams require.
//
// kDeadlineExceeded becomes UNAVAILABLE, which is what Triton itself answers when a request's
// timeout expires in its queue: clients that retry on one retry on both. (Triton's C API has no
// deadline code.)
// Without memory for the message it says just that.
TRITONSERVER_Error* ToTritonError(const Status& status);

// Takes ownership of `error`; ok for nullptr.
Status FromTritonError(TRITONSERVER_Error* error);

void LogMessage(TRITONSERVER_LogLevel level, std::string_view message) noexcept;
inline void LogInfo(std::string_view message) { LogMessage(TRITONSERVER_LOG_INFO, message); }
inline void LogWarning(std::string_view message) { LogMessage(TRITONSERVER_LOG_WARN, message); }
inline void LogError(std::string_view message) { LogMessage(TRITONSERVER_LOG_ERROR, message); }

// For calls whose failure nothing can be done about: logs it.
void LogIfError(TRITONSERVER_Error* error, const char* doing);

// What was thrown while `doing` something; without memory for that it says just so.
Status FromException(const char* doing, const std::exception& thrown) noexcept;

// Runs the body of an API function: nothing it throws crosses the C boundary.
template <typename Body>
TRITONSERVER_Error* Guarded(const char* function, Body&& body) noexcept {
  try {
    return ToTritonError(body());
  } catch (const std::exception& e) {
    return ToTritonError(FromException(function, e));
  } catch (...) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, function);
  }
}

}  // namespace slipstream::triton
