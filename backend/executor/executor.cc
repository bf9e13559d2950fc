// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/executor.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>

namespace slipstream {
namespace {

std::string Offer(const WorkerInfo& info) {
  std::string text = "a vocabulary of " + std::to_string(info.vocab_size) + " and";
  for (const KvGroup& group : info.kv_groups) text += " " + std::to_string(group.num_blocks);
  text += " KV blocks of " + std::to_string(info.tokens_per_block) + " tokens, steps of " +
          std::to_string(info.max_num_seqs) + " sequences and " +
          std::to_string(info.max_num_tokens) + " tokens";
  if (info.expert_layers.empty()) return text;
  return text + ", " + std::to_string(info.num_experts) + " experts in each of " +
         std::to_string(info.expert_layers.size()) + " layers";
}

constexpr TimeNs kMillisecond = 1000000;
constexpr int kMaxWaitMs = 1000;  // no sleep is longer

TimeNs Now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<TimeNs>(t.tv_sec) * 1000000000 + t.tv_nsec;
}

}  // namespace

const char* HealthName(Health health) {
  switch (health) {
    case Health::kStarting:
      return "starting";
    case Health::kReady:
      return "ready";
    case Health::kRecovering:
      return "recovering";
    case Health::kDraining:
      return "draining";
    case Health::kDead:
      return "dead";
    case Health::kStopped:
      return "stopped";
  }
  return "";
}

// What other threads leave for the executor's, and what it publishes for them.
struct Executor::Inbox {
  struct Submission {
    RequestId id;
    Request request;
    TimeNs arrival;
  };
  struct Contents {
    std::vector<Submission> submissions;
    std::vector<RequestId> cancels;
    std::vector<std::string> client_cancels;
    std::optional<Status> restarted;  // from the restart thread
  };

  std::mutex mutex;
  Contents contents;               // guarded by mutex
  bool closed = false;             // guarded by mutex: no more submissions
  Status closed_why;               // guarded by mutex
  bool drain = false;              // guarded by mutex
  TimeNs drain_deadline = kNever;  // guarded by mutex
  QueueLoad waiting;               // guarded by mutex: in the engine's queue or in `contents`
  ClassLoads fresh{};              // guarded by mutex: likewise; what better classes may displace
  uint64_t rejected = 0;           // guarded by mutex
  WorkerFailure failure;           // guarded by mutex
  MetricsSnapshot metrics;         // guarded by mutex

  // These need the mutex.
  void Count(const Request& request) {
    const int64_t n = request.spec().num_return_sequences;
    const QueueLoad load = {n, n * request.prompt_len()};
    waiting = waiting + load;
    QueueLoad& own = fresh[static_cast<size_t>(request.spec().priority)];
    own = own + load;
  }
  QueueLoad Before(int32_t priority) const { return waiting - Displaceable(fresh, priority); }
  Status CheckRoom(const ExecutorConfig& config, QueueLoad more, int32_t priority,
                   QueueLoad ahead) {
    if (closed) return closed_why;
    const Status room = CheckQueue(config, ahead + Before(priority), more);
    if (!room.ok()) ++rejected;
    return room;
  }
};

// Takes back what was counted, unless it is kept.
class Executor::Counted {
 public:
  explicit Counted(Inbox* inbox) : inbox_(inbox), waiting_(inbox->waiting), fresh_(inbox->fresh) {}
  ~Counted() {
    if (inbox_ == nullptr) return;
    inbox_->waiting = waiting_;
    inbox_->fresh = fresh_;
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  void Keep() { inbox_ = nullptr; }

 private:
  Inbox* inbox_;
  const QueueLoad waiting_;
  const ClassLoads fresh_;
};

Executor::Executor(const ExecutorConfig& config, std::unique_ptr<WorkerPort> port, EventSink* sink)
    : config_(config),
      port_(std::move(port)),
      sink_(sink),
      inbox_(std::make_unique<Inbox>()),
      wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

StatusOr<std::unique_ptr<Executor>> Executor::Create(const ExecutorConfig& config,
                                                     std::unique_ptr<WorkerPort> port,
                                                     EventSink* sink,
                                                     const WorkerPort::Progress& progress) {
  std::unique_ptr<Executor> executor(new Executor(config, std::move(port), sink));
  const Status loaded = executor->Load(progress);
  if (!loaded.ok()) return loaded;
  executor->health_.store(Health::kReady, std::memory_order_release);
  executor->thread_ = std::thread(&Executor::Run, executor.get());
  return executor;
}

Executor::~Executor() {
  Shutdown(/*drain=*/false, 0);
  if (wake_fd_ >= 0) close(wake_fd_);
}

Status Executor::Load(const WorkerPort::Progress& progress) {
  if (wake_fd_ < 0) return Status::Internal("eventfd: out of file descriptors");
  auto info = port_->Start(progress);
  if (!info.ok()) return info.status();
  if (config_.max_num_seqs == 0) config_.max_num_seqs = info->max_num_seqs;
  if (config_.max_num_tokens == 0) config_.max_num_tokens = info->max_num_tokens;
  const Status pools = CheckKvGroups(*info, config_);
  if (!pools.ok()) return pools;
  worker_info_ = std::move(*info);
  if (!worker_info_.token_table.empty()) {
    auto table = TokenTable::FromMsgpack(worker_info_.token_table);
    if (!table.ok()) return table.status();
    token_table_ = std::move(*table);
  }
  engine_ = std::make_unique<Engine>(config_, worker_info_, token_table_);
  supervisor_ = std::make_unique<Supervisor>(config_, engine_.get());
  limits_ = engine_->limits();
  if (const std::vector<int32_t>& layers = worker_info_.expert_layers; !layers.empty()) {
    const int32_t experts = worker_info_.num_experts;
    expert_load_ = std::make_shared<ExpertLoad>(
        ExpertLoad{layers, experts, std::vector<uint64_t>(layers.size() * experts)});
  }
  PublishMetrics();
  return Status::Ok();
}

StatusOr<RequestHandle> Executor::Submit(RequestSpec spec) {
  std::vector<RequestSpec> one;
  one.push_back(std::move(spec));
  auto handles = SubmitAll(std::move(one));
  if (!handles.ok()) return handles.status();
  return handles->front();
}

StatusOr<std::vector<RequestHandle>> Executor::SubmitAll(std::vector<RequestSpec> specs) {
  std::vector<Request> requests;
  for (RequestSpec& spec : specs) {
    if (!spec.sampling.has_seed) spec.sampling.seed = RandomSeed();
    auto request = Request::Create(std::move(spec), limits_);
    if (!request.ok()) return request.status();
    requests.push_back(std::move(*request));
  }
  // What can throw, first: a request whose submission has thrown must not be served.
  std::vector<RequestHandle> handles;
  handles.reserve(requests.size());
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    Inbox& in = *inbox_;
    std::vector<Inbox::Submission>& submissions = in.contents.submissions;
    if (const size_t size = submissions.size() + requests.size(); size > submissions.capacity()) {
      submissions.reserve(std::max(size, 2 * submissions.capacity()));
    }
    Counted counted(&in);
    for (const Request& request : requests) {
      const int32_t n = request.spec().num_return_sequences;
      const Status room = in.CheckRoom(config_, {n, int64_t{n} * request.prompt_len()},
                                       request.spec().priority, {});
      if (!room.ok()) return room;
      in.Count(request);
    }
    counted.Keep();
    const TimeNs now = Now();
    for (Request& request : requests) {
      const RequestId id = next_id_.fetch_add(1, std::memory_order_relaxed);
      submissions.push_back({id, std::move(request), now});
      handles.push_back(RequestHandle{id});
    }
  }
  Wake();
  return handles;
}

StatusOr<int64_t> Executor::CheckRoom(QueueLoad more, int32_t priority, QueueLoad ahead) {
  if (config_.max_queue_requests > 0) {
    // What alone exceeds the bound is Submit()'s to refuse, for good.
    more.sequences = std::min<int64_t>(more.sequences, config_.max_queue_requests);
  }
  std::lock_guard<std::mutex> lock(inbox_->mutex);
  if (Status s = inbox_->CheckRoom(config_, more, priority, ahead); !s.ok()) return s;
  if (config_.max_queue_requests <= 0) return std::numeric_limits<int64_t>::max();
  return config_.max_queue_requests - (ahead + inbox_->Before(priority)).sequences - more.sequences;
}

void Executor::Cancel(RequestHandle handle) {
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    inbox_->contents.cancels.push_back(handle.id);
  }
  Wake();
}

void Executor::CancelByClientId(const std::string& client_id) {
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    inbox_->contents.client_cancels.push_back(client_id);
  }
  Wake();
}

void Executor::Shutdown(bool drain, TimeNs deadline) {
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    inbox_->closed = true;
    if (inbox_->closed_why.ok()) inbox_->closed_why = Status::Unavailable("shutting down");
    inbox_->drain = true;
    inbox_->drain_deadline = drain ? deadline : 0;
  }
  draining_.store(true, std::memory_order_release);
  if (!drain) port_->Interrupt();
  Wake();
  if (thread_.joinable()) thread_.join();
  port_->Stop();
  health_.store(Health::kStopped, std::memory_order_release);
}

Health Executor::health() const {
  const Health health = health_.load(std::memory_order_acquire);
  const bool serves = health == Health::kReady || health == Health::kRecovering;
  return serves && draining_.load(std::memory_order_acquire) ? Health::kDraining : health;
}

Status Executor::closed_why() const {
  std::lock_guard<std::mutex> lock(inbox_->mutex);
  return inbox_->closed_why;
}

WorkerFailure Executor::last_failure() const {
  std::lock_guard<std::mutex> lock(inbox_->mutex);
  return inbox_->failure;
}

MetricsSnapshot Executor::Metrics() const {
  std::lock_guard<std::mutex> lock(inbox_->mutex);
  MetricsSnapshot m = inbox_->metrics;
  m.requests_rejected += inbox_->rejected;
  return m;
}

void Executor::Wake() {
  const uint64_t one = 1;
  const ssize_t ignored = write(wake_fd_, &one, sizeof one);  // full means: it will wake anyway
  (void)ignored;
}

// The order matters for latency: the next step is on its way before anybody hears of the last one.
void Executor::Run() {
  for (;;) {
    const TimeNs now = Now();
    DrainInbox(now);
    engine_->ExpireDeadlines(now);
    if (supervisor_->serving()) {
      PumpResults();
      SendSteps();
      const Status hangs = supervisor_->CheckWatchdog(now);
      if (!hangs.ok()) OnWorkerFailure(hangs.message());
    } else if (supervisor_->BeginStart(now)) {
      RestartWorker();
    }
    PublishMetrics();
    PublishEvents();
    assert(!engine_->idle() || engine_->CheckIntegrity().empty());
    if (ShouldExit(now)) break;
    WaitForWork();
  }
  if (restart_thread_.joinable()) {
    port_->Interrupt();
    restart_thread_.join();
  }
}

void Executor::DrainInbox(TimeNs now) {
  Inbox::Contents contents;
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    std::swap(contents, inbox_->contents);
  }
  for (Inbox::Submission& s : contents.submissions) {
    const auto context = s.request.spec().context;
    const Status status = engine_->Submit(s.id, std::move(s.request), s.arrival);
    // Preemptions may have filled the queue since Submit() looked.
    if (!status.ok()) engine_->Refuse(s.id, context, status);
  }
  supervisor_->EndLateRequests(now);
  for (const RequestId id : contents.cancels) {
    engine_->Finish(id, FinishReason::kCancelled, Status::Cancelled("the request was cancelled"),
                    now);
  }
  for (const std::string& id : contents.client_cancels) engine_->FinishByClientId(id, now);
  if (contents.restarted) OnRestarted(*contents.restarted);
}

void Executor::PumpResults() {
  std::string why;
  for (;;) {
    switch (port_->Receive(&result_, &why)) {
      case WorkerPort::Reply::kNone:
        return AddExpertTokens();
      case WorkerPort::Reply::kFailed:
        return OnWorkerFailure(why);
      case WorkerPort::Reply::kResult: {
        const Status status = engine_->OnResult(result_, Now());
        if (!status.ok()) return OnWorkerFailure(status.message());
        supervisor_->OnAnswer(Now());
        // A new worker has passed its trial.
        Health recovering = Health::kRecovering;
        health_.compare_exchange_strong(recovering, Health::kReady, std::memory_order_acq_rel);
      }
    }
  }
}

void Executor::AddExpertTokens() {
  if (expert_load_ == nullptr) return;
  const std::vector<uint64_t> computed = port_->TakeExpertTokens();
  if (computed.empty()) return;
  auto load = std::make_shared<ExpertLoad>(*expert_load_);
  std::transform(computed.begin(), computed.end(), load->tokens.begin(), load->tokens.begin(),
                 std::plus<>());
  expert_load_ = std::move(load);
}

void Executor::SendSteps() {
  while (supervisor_->serving() && engine_->BuildStep(Now(), &plan_)) {
    supervisor_->OnSent(Now());
    const Status status = port_->Send(plan_);
    if (!status.ok()) OnWorkerFailure(status.message());
  }
}

void Executor::PublishEvents() {
  if (engine_->has_events()) sink_->OnEvents(engine_->TakeEvents());
}

void Executor::PublishMetrics() {
  MetricsSnapshot snapshot;
  engine_->FillMetrics(&snapshot);
  snapshot.expert_load = expert_load_;
  std::lock_guard<std::mutex> lock(inbox_->mutex);
  inbox_->waiting = {snapshot.waiting, snapshot.waiting_tokens};
  inbox_->fresh = snapshot.waiting_fresh;
  for (const Inbox::Submission& s : inbox_->contents.submissions) inbox_->Count(s.request);
  inbox_->metrics = std::move(snapshot);
}

void Executor::OnWorkerFailure(const std::string& why) {
  if (!supervisor_->serving()) return;
  port_->Stop();
  supervisor_->OnFailure(why, Now());
  PublishFailure();
}

void Executor::PublishFailure() {
  const bool dead = supervisor_->state() == Supervisor::State::kGivenUp;
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    inbox_->failure = supervisor_->failure();
    if (dead) {
      inbox_->closed = true;
      inbox_->closed_why = supervisor_->given_up();
    }
  }
  health_.store(dead ? Health::kDead : Health::kRecovering, std::memory_order_release);
}

void Executor::RestartWorker() {
  if (restart_thread_.joinable()) restart_thread_.join();
  restart_thread_ = std::thread([this] {
    auto info = port_->Start(nullptr);
    Status status = info.ok() ? Status::Ok() : info.status();
    if (info.ok() && (info->vocab_size != worker_info_.vocab_size ||
                      !CanReplace(worker_info_.kv_groups, info->kv_groups) ||
                      info->tokens_per_block != worker_info_.tokens_per_block ||
                      info->max_num_seqs != worker_info_.max_num_seqs ||
                      info->max_num_tokens != worker_info_.max_num_tokens ||
                      info->expert_layers != worker_info_.expert_layers ||
                      info->num_experts != worker_info_.num_experts)) {
      status = Status::Internal("the restarted worker offers " + Offer(*info) + "; it had " +
                                Offer(worker_info_));
    }
    {
      std::lock_guard<std::mutex> lock(inbox_->mutex);
      inbox_->contents.restarted = std::move(status);
    }
    Wake();
  });
}

void Executor::OnRestarted(const Status& status) {
  restart_thread_.join();
  if (!status.ok()) port_->Stop();
  supervisor_->OnStarted(status, Now());
  if (!status.ok()) return PublishFailure();
  if (!engine_->in_trial()) health_.store(Health::kReady, std::memory_order_release);
}

bool Executor::ShouldExit(TimeNs now) {
  TimeNs deadline;
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    if (!inbox_->drain) return false;
    // Accepted before the door was closed: the next round takes them in, at once.
    if (!inbox_->contents.submissions.empty()) return false;
    deadline = inbox_->drain_deadline;
  }
  if (!supervisor_->Drained(deadline, now)) return false;
  PublishMetrics();
  PublishEvents();
  return true;
}

void Executor::WaitForWork() {
  TimeNs until = std::min(engine_->next_deadline(), supervisor_->next_wake());
  {
    std::lock_guard<std::mutex> lock(inbox_->mutex);
    if (inbox_->drain) until = std::min(until, inbox_->drain_deadline);
  }
  const TimeNs now = Now();
  const TimeNs left = until == kNever ? kMaxWaitMs * kMillisecond
                                      : std::max<TimeNs>(0, until - now) + kMillisecond - 1;
  const int timeout_ms = static_cast<int>(std::min<TimeNs>(kMaxWaitMs, left / kMillisecond));
  pollfd fds[2] = {{wake_fd_, POLLIN, 0}, {-1, POLLIN, 0}};
  if (supervisor_->serving()) fds[1].fd = port_->fd();
  if (poll(fds, 2, timeout_ms) > 0 && (fds[0].revents & POLLIN) != 0) {
    uint64_t drained;
    const ssize_t ignored = read(wake_fd_, &drained, sizeof drained);
    (void)ignored;
  }
}

}  // namespace slipstream
