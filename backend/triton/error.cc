// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/error.h"

#include <new>

#include "executor/utf8.h"

namespace slipstream::triton {
namespace {

// gRPC sends a message in a header, of which clients take 8 KiB by default, each byte that is not
// ASCII as three; a longer one reaches them as an error of its own.
constexpr size_t kMaxMessageBytes = 2000;

TRITONSERVER_Error_Code CodeFor(StatusCode code) {
  switch (code) {
    case StatusCode::kInvalidArgument:
      return TRITONSERVER_ERROR_INVALID_ARG;
    case StatusCode::kUnsupported:
      return TRITONSERVER_ERROR_UNSUPPORTED;
    case StatusCode::kNotFound:
      return TRITONSERVER_ERROR_NOT_FOUND;
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded:
      return TRITONSERVER_ERROR_UNAVAILABLE;
    case StatusCode::kCancelled:
      return TRITONSERVER_ERROR_CANCELLED;
    case StatusCode::kOk:
    case StatusCode::kInternal:
      break;
  }
  return TRITONSERVER_ERROR_INTERNAL;
}

StatusCode CodeFor(TRITONSERVER_Error_Code code) {
  switch (code) {
    case TRITONSERVER_ERROR_INVALID_ARG:
      return StatusCode::kInvalidArgument;
    case TRITONSERVER_ERROR_UNSUPPORTED:
      return StatusCode::kUnsupported;
    case TRITONSERVER_ERROR_NOT_FOUND:
      return StatusCode::kNotFound;
    case TRITONSERVER_ERROR_UNAVAILABLE:
      return StatusCode::kUnavailable;
    case TRITONSERVER_ERROR_CANCELLED:
      return StatusCode::kCancelled;
    case TRITONSERVER_ERROR_UNKNOWN:
    case TRITONSERVER_ERROR_INTERNAL:
    case TRITONSERVER_ERROR_ALREADY_EXISTS:
      break;
  }
  return StatusCode::kInternal;
}

}  // namespace

TRITONSERVER_Error* ToTritonError(const Status& status) {
  if (status.ok()) return nullptr;
  const TRITONSERVER_Error_Code code = CodeFor(status.code());
  try {
    return TRITONSERVER_ErrorNew(code, ShownText(status.message(), kMaxMessageBytes).c_str());
  } catch (const std::bad_alloc&) {
    return TRITONSERVER_ErrorNew(code, "out of memory");
  }
}

Status FromTritonError(TRITONSERVER_Error* error) {
  if (error == nullptr) return Status::Ok();
  Status status(CodeFor(TRITONSERVER_ErrorCode(error)), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  return status;
}

Status FromException(const char* doing, const std::exception& thrown) noexcept {
  try {
    return Status::Internal(std::string(doing) + ": " + thrown.what());
  } catch (const std::bad_alloc&) {
    return Status::Internal("out of memory");  // short enough for a string to take none
  }
}

void LogMessage(TRITONSERVER_LogLevel level, std::string_view message) noexcept {
  try {
    if (!TRITONSERVER_LogIsEnabled(level)) return;
    const std::string line = "slipstream: " + std::string(message);
    TRITONSERVER_Error* error = TRITONSERVER_LogMessage(level, __FILE__, __LINE__, line.c_str());
    if (error != nullptr) TRITONSERVER_ErrorDelete(error);  // nowhere left to say it
  } catch (const std::bad_alloc&) {                         // nor memory to say it with
  }
}

void LogIfError(TRITONSERVER_Error* error, const char* doing) {
  const Status status = FromTritonError(error);
  if (!status.ok()) LogError(std::string(doing) + ": " + status.message());
}

}  // namespace slipstream::triton
