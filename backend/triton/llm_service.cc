// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/llm_service.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "triton/error.h"
#include "triton/instance_groups.h"
#include "triton/llm_registry.h"
#include "triton/process_factory.h"
#include "triton/withdrawal.h"

namespace slipstream::triton {
namespace {

// Lines of the log while the model loads: one for every new stage, else one every 5 s.
WorkerPort::Progress LogProgress(const std::string& model) {
  return [model, last = std::string(), next = uint64_t{0}](double fraction,
                                                           const std::string& what) mutable {
    const uint64_t now = MonotonicNs();
    if (what == last && now < next) return;
    last = what;
    next = now + 5'000'000'000;
    LogInfo("model " + model + ": " + std::to_string(static_cast<int>(fraction * 100)) + "% " +
            what);
  };
}

int64_t WallTimeUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

bool IsAlive(const LlmService& llm) {
  return llm.health() != Health::kDead && llm.health() != Health::kStopped;
}

bool IsAnyLlmAlive() {
  const auto all = AllLlms();
  return std::any_of(all.begin(), all.end(), [](const auto& llm) { return IsAlive(*llm); });
}

bool AreDeadLlmsIdle() {
  const auto all = AllLlms();
  return std::all_of(all.begin(), all.end(),
                     [](const auto& llm) { return IsAlive(*llm) || llm->idle(); });
}

}  // namespace

StatusOr<std::shared_ptr<LlmService>> LlmService::Create(const ModelConfig& config) {
  auto parameters = LlmParameters::FromMap(config.parameters);
  if (!parameters.ok()) return parameters.status();
  if (Status s = PlaceWorker(config, &*parameters); !s.ok()) return s;
  LogWithoutEffect(config.name, parameters->without_effect);
  auto service =
      std::shared_ptr<LlmService>(new LlmService(config.name, std::move(parameters).value()));
  if (Status s = service->Load(config); !s.ok()) return s;
  return service;
}

LlmService::LlmService(std::string name, LlmParameters parameters)
    : name_(std::move(name)), parameters_(std::move(parameters)) {}

LlmService::~LlmService() { Stop(); }

TokenizerParameters LlmService::tokenizer() const {
  const WorkerParameters& worker = parameters_.worker;
  return {worker.tokenizer.empty() ? worker.model : worker.tokenizer, worker.revision,
          worker.trust_remote_code, parameters_.python};
}

void LlmService::Stop() {
  const TimeNs deadline =
      static_cast<TimeNs>(MonotonicNs()) + TimeNs{parameters_.drain_timeout_ms} * 1'000'000;
  {
    std::unique_lock<std::mutex> lock(expected_mutex_);
    if (stopping_) return;
    stopping_ = true;
    const auto due = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(deadline));
    expected_changed_.wait_until(lock, due, [this] { return expected_ == 0; });
  }
  {
    const std::unique_lock<std::shared_mutex> lock(gate_);
    closed_ = true;
  }
  watch_.reset();
  if (executor_ != nullptr) {
    executor_->Shutdown(/*drain=*/true, deadline);
  }
  delivery_.Stop();  // after the last event, before the executor that it cancels requests of
  metrics_.reset();
}

Status LlmService::Load(const ModelConfig& config) {
  auto reader = ReaderSettings::Of(config);
  if (!reader.ok()) return reader.status();
  reader_ = std::move(reader).value();
  auto port = MakeWorkerPort(parameters_);
  if (!port.ok()) return port.status();
  auto executor = Executor::Create(parameters_.executor, std::move(port).value(), &delivery_,
                                   LogProgress(name_));
  if (!executor.ok()) return executor.status();
  executor_ = std::move(executor).value();
  if (Status s = CheckLoaded(); !s.ok()) return s;

  reader_.exclude_input_in_output = parameters_.exclude_input_in_output;
  reader_.skip_special_tokens = parameters_.skip_special_tokens;
  reader_.vocab_size = executor_->limits().vocab_size;
  reader_.end_ids = executor_->worker_info().end_ids;
  reader_.token_table = executor_->token_table();
  delivery_.Start({parameters_.cancellation_check_period_ms, parameters_.flow_window,
                   [this](RequestHandle handle) { executor_->Cancel(handle); }});
  StartReporting(config);
  return Status::Ok();
}

Status LlmService::CheckLoaded() const {
  const int32_t context = executor_->limits().max_seq_len;
  for (const int64_t window : parameters_.attention_windows) {
    if (window < context) {
      return Status::Unsupported("parameter max_attention_window_size: " + std::to_string(window) +
                                 " is shorter than the model's context of " +
                                 std::to_string(context) +
                                 "; a window beyond the checkpoint's own is not served");
    }
  }
  return Status::Ok();
}

void LlmService::StartReporting(const ModelConfig& config) {
  const WorkerInfo& worker = executor_->worker_info();
  const bool on_gpu = worker.device.rfind("cuda", 0) == 0;
  metrics_ = MetricsReporter::Create(name_, config.version, parameters_.stats_check_period_ms,
                                     LlmMetrics(), [this, on_gpu, weights = worker.weight_bytes] {
                                       MetricsView view;
                                       view.wall_time_us = WallTimeUs();  // not after what it dates
                                       view.snapshot = executor_->Metrics();
                                       view.health = executor_->health();
                                       view.on_gpu = on_gpu;
                                       view.weight_bytes = weights;
                                       return view;
                                     });
  HealthWatch::Options options;
  options.model = name_;
  options.exit_on_fatal = parameters_.exit_on_fatal;
  options.health = [this] { return executor_->health(); };
  options.failure = [this] { return executor_->last_failure(); };
  options.idle = [this] { return idle() && AreDeadLlmsIdle(); };
  options.withdraw = [this, config] { return WithdrawAll(config); };
  options.serving = [server = config.server] { return IsServing(server); };
  options.drain_timeout_ms = parameters_.drain_timeout_ms;
  options.end_requests = [this] {
    executor_->Shutdown(/*drain=*/true, static_cast<TimeNs>(MonotonicNs()));
  };
  options.last = [] { return !IsAnyLlmLoading() && !IsAnyLlmAlive(); };
  watch_ = std::make_unique<HealthWatch>(std::move(options));
}

Withdrawal LlmService::WithdrawAll(const ModelConfig& config) const {
  if (!IsCurrentLlm(name_, this) || !IsServing(config.server)) return Withdrawal::kLater;
  const std::string why = executor_->closed_why().message();
  const Status status = Withdraw(config, PipelinesOf(name_), why);
  if (status.ok()) return Withdrawal::kDone;
  LogWarning("model " + name_ + " stays ready for the server: " + status.message());
  // A server that was told to exit meanwhile refuses, too.
  return IsServing(config.server) ? Withdrawal::kRefused : Withdrawal::kLater;
}

Status LlmService::Ready() const {
  const Health health = executor_->health();
  if (health == Health::kReady) return Status::Ok();
  return Status::Unavailable("model " + name_ + " is " + HealthName(health));
}

LlmService::Ticket::~Ticket() {
  {
    const std::lock_guard<std::mutex> lock(service_->expected_mutex_);
    --service_->expected_;
  }
  service_->expected_changed_.notify_all();
}

StatusOr<std::shared_ptr<LlmService::Ticket>> LlmService::Expect() {
  auto ticket = std::make_shared<Ticket>(shared_from_this());
  const std::lock_guard<std::mutex> lock(expected_mutex_);
  ++expected_;  // the ticket takes it back in any case
  if (stopping_) return Status::Unavailable("model " + name_ + " is shutting down");
  return ticket;
}

int32_t LlmService::max_sequences() const {
  const RequestLimits& limits = executor_->limits();
  const int32_t most = limits.max_return_sequences;
  return limits.max_queue_requests > 0 ? std::min(most, limits.max_queue_requests) : most;
}

StatusOr<int64_t> LlmService::CheckRoom(int64_t sequences, int32_t priority, int64_t ahead) {
  // Not tokenized yet: a token each at least.
  return executor_->CheckRoom({sequences, sequences}, priority, {ahead, ahead});
}

void LlmService::Serve(LlmRequest request, const std::string& client_id,
                       std::unique_ptr<ResponseChannel> channel) {
  if (request.stop) {
    StopBeforeLlm(name_, client_id);  // what is still being tokenized, or on its way from there
    const std::shared_lock<std::shared_mutex> lock(gate_);
    if (!closed_) executor_->CancelByClientId(client_id);
    channel->Send({}, true);
    return;
  }
  {
    const std::shared_lock<std::shared_mutex> lock(gate_);
    if (!closed_) {
      Submit(std::move(request), std::move(channel));
      return;
    }
  }
  channel->SendError(Status::Unavailable("model " + name_ + " is shutting down"), true);
}

void LlmService::Submit(LlmRequest request, std::unique_ptr<ResponseChannel> channel) {
  const auto stream = std::make_shared<LlmStream>(std::move(channel), std::move(request.plan));
  std::vector<RequestSpec>& rows = request.rows;
  const auto stopped = std::move(request.stopped);
  Delivery& lane = delivery_.Add(stream);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row = static_cast<int32_t>(i);
    const auto handle = SubmitRow(stream, row, std::move(rows[i]));
    if (handle.ok()) {
      lane.SetHandle(stream, row, *handle);
      // A stop request first marks what has not been submitted, and then cancels what has.
      if (stopped != nullptr && *stopped) executor_->Cancel(*handle);
    } else {
      lane.Fail(stream, row, handle.status());
    }
  }
}

// Throws nothing: Delivery knows the stream by now and waits for an event of every row.
StatusOr<RequestHandle> LlmService::SubmitRow(const std::shared_ptr<LlmStream>& stream, int32_t row,
                                              RequestSpec&& spec) noexcept {
  try {
    spec.context = std::make_shared<LlmContext>(stream, row);
    return executor_->Submit(std::move(spec));
  } catch (const std::bad_alloc&) {
    return Status::Unavailable("out of memory");
  }
}

}  // namespace slipstream::triton
