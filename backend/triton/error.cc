// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/error.h"

namespace slipstream::triton {
namespace {

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
  return TRITONSERVER_ErrorNew(CodeFor(status.code()), status.message().c_str());
}

Status FromTritonError(TRITONSERVER_Error* error) {
  if (error == nullptr) return Status::Ok();
  Status status(CodeFor(TRITONSERVER_ErrorCode(error)), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  return status;
}

void LogMessage(TRITONSERVER_LogLevel level, const std::string& message) {
  if (!TRITONSERVER_LogIsEnabled(level)) return;
  const std::string line = "slipstream: " + message;
  TRITONSERVER_Error* error = TRITONSERVER_LogMessage(level, __FILE__, __LINE__, line.c_str());
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);  // nowhere left to say it
}

void LogIfError(TRITONSERVER_Error* error, const char* doing) {
  const Status status = FromTritonError(error);
  if (!status.ok()) LogError(std::string(doing) + ": " + status.message());
}

}  // namespace slipstream::triton
