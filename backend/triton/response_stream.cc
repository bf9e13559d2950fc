// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/response_stream.h"

#include <chrono>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "triton/error.h"

namespace slipstream::triton {

uint64_t MonotonicNs() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

StatusOr<std::unique_ptr<ResponseStream>> ResponseStream::Create(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
  // Allocated first: once there is a factory, nothing is left to fail.
  std::unique_ptr<ResponseStream> stream(new (std::nothrow) ResponseStream(instance, request));
  Status status =
      stream == nullptr
          ? Status::Internal("out of memory")
          : FromTritonError(TRITONBACKEND_ResponseFactoryNew(&stream->factory_, request));
  if (status.ok()) return stream;
  LogIfError(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL),
             "releasing a request");
  return status;
}

ResponseStream::ResponseStream(TRITONBACKEND_ModelInstance* instance,
                               TRITONBACKEND_Request* request)
    : instance_(instance), request_(request), start_ns_(MonotonicNs()) {}

ResponseStream::~ResponseStream() {
  if (factory_ == nullptr) return;
  // Memory may be what was missing, so the message is one that needs none.
  try {
    SendError(Status::Internal("no response"), true);
  } catch (const std::exception&) {
    SendResponse(nullptr, true, Status());
  }
}

void ResponseStream::MarkComputeStart() { compute_start_ns_ = MonotonicNs(); }

void ResponseStream::Send(const std::vector<OutputTensor>& outputs, bool final) {
  if (factory_ == nullptr) return;
  TRITONBACKEND_Response* response = nullptr;
  Status status = FromTritonError(TRITONBACKEND_ResponseNewFromFactory(&response, factory_));
  if (status.ok()) status = AddOutputs(response, outputs);
  SendResponse(response, final, status);
}

void ResponseStream::SendError(const Status& error, bool final) {
  if (factory_ == nullptr) return;
  TRITONBACKEND_Response* response = nullptr;
  LogIfError(TRITONBACKEND_ResponseNewFromFactory(&response, factory_), "creating a response");
  SendResponse(response, final, error);
}

bool ResponseStream::cancelled() {
  if (factory_ == nullptr) return false;
  bool cancelled = false;
  LogIfError(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &cancelled),
             "asking whether a request is cancelled");
  return cancelled;
}

Status ResponseStream::AddOutputs(TRITONBACKEND_Response* response,
                                  const std::vector<OutputTensor>& outputs) {
  for (const OutputTensor& tensor : outputs) {
    TRITONBACKEND_Output* output = nullptr;
    Status status = FromTritonError(TRITONBACKEND_ResponseOutput(
        response, &output, tensor.name, tensor.dtype, tensor.shape.data(),
        static_cast<uint32_t>(tensor.shape.size())));
    if (!status.ok()) return status;
    void* buffer = nullptr;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    status = FromTritonError(
        TRITONBACKEND_OutputBuffer(output, &buffer, tensor.data.size(), &memory, &memory_id));
    if (!status.ok()) return status;
    if (memory == TRITONSERVER_MEMORY_GPU) {
      return Status::Unsupported(std::string(tensor.name) +
                                 ": asked for in the memory of a GPU; outputs are in host memory");
    }
    if (!tensor.data.empty()) std::memcpy(buffer, tensor.data.data(), tensor.data.size());
  }
  return Status::Ok();
}

// `response` may be null: then only the flags can be sent.
void ResponseStream::SendResponse(TRITONBACKEND_Response* response, bool final,
                                  const Status& error) {
  const uint32_t flags = final ? TRITONSERVER_RESPONSE_COMPLETE_FINAL : 0;
  if (!error.ok()) failed_ = true;
  if (response != nullptr) {
    TRITONSERVER_Error* triton_error = ToTritonError(error);
    LogIfError(TRITONBACKEND_ResponseSend(response, flags, triton_error), "sending a response");
    if (triton_error != nullptr) TRITONSERVER_ErrorDelete(triton_error);
  } else if (final) {
    LogIfError(TRITONBACKEND_ResponseFactorySendFlags(factory_, flags), "ending a response");
  }
  if (final) Finish();
}

void ResponseStream::Finish() {
  const uint64_t end_ns = MonotonicNs();
  const uint64_t compute_start_ns = compute_start_ns_ != 0 ? compute_start_ns_ : end_ns;
  LogIfError(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request_, !failed_, start_ns_,
                                                         compute_start_ns, end_ns, end_ns),
             "reporting statistics");
  if (!failed_) {
    LogIfError(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, 1, start_ns_,
                                                                compute_start_ns, end_ns, end_ns),
               "reporting batch statistics");
  }
  LogIfError(TRITONBACKEND_ResponseFactoryDelete(factory_), "deleting a response factory");
  factory_ = nullptr;
  LogIfError(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL),
             "releasing a request");
  request_ = nullptr;
}

}  // namespace slipstream::triton
