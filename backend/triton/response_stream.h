// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "executor/status.h"
#include "triton/tensor.h"
#include "triton/triton_abi.h"

namespace slipstream::triton {

// Where the responses to one request go. Exactly one call has `final`, and it is the last.
class ResponseChannel {
 public:
  virtual ~ResponseChannel() = default;
  // A response with these outputs; none is a successful empty response. A failure to build it is
  // sent as an error in its place, with the same `final`.
  virtual void Send(const std::vector<OutputTensor>& outputs, bool final) = 0;
  virtual void SendError(const Status& error, bool final) = 0;
  // Whether the client has gone or cancelled. Cheap.
  virtual bool cancelled() = 0;
};

// A Triton request from the moment Execute receives it: owns the request and its response factory,
// sends the responses, reports the statistics and releases the request with the final one.
//
// The request itself is kept to the end, although its inputs are read at once, because only then
// are the durations known that Triton's statistics are made of.
//
// One thread at a time. Sending runs Triton's response callback on the calling thread, which can
// block: never on the executor's thread.
class ResponseStream final : public ResponseChannel {
 public:
  // Takes the request over in every case: when this fails, it has been released.
  static StatusOr<std::unique_ptr<ResponseStream>> Create(TRITONBACKEND_ModelInstance* instance,
                                                          TRITONBACKEND_Request* request);
  ~ResponseStream() override;  // without a final response so far: sends an INTERNAL error
  ResponseStream(const ResponseStream&) = delete;
  ResponseStream& operator=(const ResponseStream&) = delete;

  TRITONBACKEND_Request* request() const { return request_; }  // until the final response
  void MarkComputeStart();  // inputs are read; for the statistics

  void Send(const std::vector<OutputTensor>& outputs, bool final) override;
  void SendError(const Status& error, bool final) override;
  bool cancelled() override;

 private:
  ResponseStream(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request);
  Status AddOutputs(TRITONBACKEND_Response* response, const std::vector<OutputTensor>& outputs);
  void SendResponse(TRITONBACKEND_Response* response, bool final, const Status& error);
  void Finish();

  TRITONBACKEND_ModelInstance* const instance_;
  TRITONBACKEND_Request* request_;
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;  // null after the final response
  const uint64_t start_ns_;
  uint64_t compute_start_ns_ = 0;
  bool failed_ = false;
};

uint64_t MonotonicNs();

}  // namespace slipstream::triton
