// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <shared_mutex>
#include <string>

#include "executor/executor.h"
#include "triton/delivery_lanes.h"
#include "triton/health_watch.h"
#include "triton/metrics.h"
#include "triton/model.h"
#include "triton/parameters.h"
#include "triton/request_reader.h"

namespace slipstream::triton {

// What serves one loaded model of role `llm`: its Executor and what delivers its events. The model
// owns it and stops it; models of role `pipeline` hand it requests too, and may hold on to it
// beyond its end.
class LlmService final {
 public:
  // Loads the model (blocking).
  static StatusOr<std::shared_ptr<LlmService>> Create(const ModelConfig& config);
  ~LlmService();  // Stop()
  LlmService(const LlmService&) = delete;
  LlmService& operator=(const LlmService&) = delete;

  // Ready only when a token can be served now.
  Status Ready() const;
  const ReaderSettings& reader() const { return reader_; }

  // Answers the request through `channel`, here or later. Any thread, at any time: after Stop() the
  // answer is UNAVAILABLE.
  void Serve(LlmRequest request, const std::string& client_id,
             std::unique_ptr<ResponseChannel> channel);

  // Lets accepted requests finish, for at most drain_timeout_ms. Only the first call does anything.
  void Stop();

 private:
  LlmService(std::string name, LlmParameters parameters);
  Status Load(const ModelConfig& config);
  Status CheckLoaded() const;
  void StartReporting(const ModelConfig& config);
  bool WithdrawAll(const ModelConfig& config) const;
  void Submit(LlmRequest request, std::unique_ptr<ResponseChannel> channel);
  StatusOr<RequestHandle> SubmitRow(const std::shared_ptr<LlmStream>& stream, int32_t row,
                                    RequestSpec&& spec) noexcept;

  const std::string name_;
  const LlmParameters parameters_;
  ReaderSettings reader_;  // constant after Load
  DeliveryLanes delivery_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<MetricsReporter> metrics_;
  std::unique_ptr<HealthWatch> watch_;

  // Held shared while a request is handed over, so that none slips in behind the last event.
  std::shared_mutex gate_;
  bool closed_ = false;  // guarded by gate_
};

}  // namespace slipstream::triton
