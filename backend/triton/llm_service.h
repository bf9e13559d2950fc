// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <utility>

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
class LlmService final : public std::enable_shared_from_this<LlmService> {
 public:
  // A request that is being tokenized for this service, which stays open for it.
  class Ticket final {
   public:
    explicit Ticket(std::shared_ptr<LlmService> service) : service_(std::move(service)) {}
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    const std::shared_ptr<LlmService>& service() const { return service_; }

   private:
    const std::shared_ptr<LlmService> service_;
  };

  // Loads the model (blocking).
  static StatusOr<std::shared_ptr<LlmService>> Create(const ModelConfig& config);
  ~LlmService();  // Stop()
  LlmService(const LlmService&) = delete;
  LlmService& operator=(const LlmService&) = delete;

  // Ready only when a token can be served now.
  Status Ready() const;
  Health health() const { return executor_->health(); }
  // Whether every client has its last response.
  bool idle() const { return delivery_.num_live() == 0; }
  const ReaderSettings& reader() const { return reader_; }
  TokenizerParameters tokenizer() const;  // whose text it makes; empty for a scripted worker's

  // Of one row of a request, at most.
  int32_t max_sequences() const;

  // For a request that needs time until it can be served. kUnavailable once Stop() was called.
  StatusOr<std::shared_ptr<Ticket>> Expect();
  // kUnavailable when so many more sequences of a class would find the queue full, with those that
  // are `ahead` of them in it; else how many more could be.
  StatusOr<int64_t> CheckRoom(int64_t sequences, int32_t priority, int64_t ahead);

  // Answers the request through `channel`, here or later. Any thread, at any time: after Stop() the
  // answer is UNAVAILABLE.
  void Serve(LlmRequest request, const std::string& client_id,
             std::unique_ptr<ResponseChannel> channel);

  // Lets accepted and expected requests finish, for at most drain_timeout_ms. Only the first call
  // does anything.
  void Stop();

 private:
  LlmService(std::string name, LlmParameters parameters);
  Status Load(const ModelConfig& config);
  Status CheckLoaded() const;
  void StartReporting(const ModelConfig& config);
  Withdrawal WithdrawAll(const ModelConfig& config) const;
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

  std::mutex expected_mutex_;
  std::condition_variable expected_changed_;
  int64_t expected_ = 0;   // guarded by expected_mutex_: tickets
  bool stopping_ = false;  // guarded by expected_mutex_: no more of them

  // Held shared while a request is handed over, so that none slips in behind the last event.
  std::shared_mutex gate_;
  bool closed_ = false;  // guarded by gate_
};

}  // namespace slipstream::triton
