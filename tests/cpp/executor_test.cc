// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/executor.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "worker_link/scripted_worker.h"

namespace slipstream {
namespace {

struct Ticket : ClientContext {
  explicit Ticket(int n) : number(n) {}
  const int number;
};

// What each submission received; waits without sleeping.
class Collector : public EventSink {
 public:
  struct Stream {
    std::vector<int32_t> tokens;
    std::vector<FinishReason> ends;
    Status error;
    int done = 0;
  };

  void OnEvents(std::vector<Event>&& events) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Event& e : events) {
      Stream& stream = streams_[static_cast<const Ticket*>(e.context.get())->number];
      CHECK(stream.done == 0);
      stream.tokens.insert(stream.tokens.end(), e.tokens.begin(), e.tokens.end());
      if (e.reason != FinishReason::kNone) stream.ends.push_back(e.reason);
      if (!e.error.ok()) stream.error = e.error;
      stream.done += e.request_done ? 1 : 0;
      done_ += e.request_done ? 1 : 0;
      tokens_ += static_cast<int>(e.tokens.size());
    }
    changed_.notify_all();
  }

  bool WaitDone(int count) {
    return Wait([this, count] { return done_ >= count; });
  }
  bool WaitTokens(int count) {
    return Wait([this, count] { return tokens_ >= count; });
  }
  Stream Get(int ticket) {
    std::lock_guard<std::mutex> lock(mutex_);
    return streams_[ticket];
  }

 private:
  template <typename Ready>
  bool Wait(Ready ready) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), ready);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, Stream> streams_;
  int done_ = 0;
  int tokens_ = 0;
};

ScriptedWorkerConfig Script(const std::string& json) {
  auto config = ScriptedWorkerConfig::FromJson(json);
  REQUIRE_MESSAGE(config.ok(), config.status().message());
  return *config;
}

// Starts once like any other, and again only when it may.
struct HeldWorker : ScriptedWorker {
  HeldWorker(ScriptedWorkerConfig config, std::shared_future<void> may)
      : ScriptedWorker(std::move(config)), may_restart(std::move(may)) {}
  StatusOr<WorkerInfo> Start(const Progress& progress) override {
    if (std::exchange(started, true)) may_restart.wait();
    return ScriptedWorker::Start(progress);
  }
  const std::shared_future<void> may_restart;
  bool started = false;
};

struct Fixture {
  explicit Fixture(const std::string& script, ExecutorConfig config = {}, bool hold = false) {
    config.restart_backoff_ms = 1;
    if (!hold) Release();
    auto created = Executor::Create(
        config, std::make_unique<HeldWorker>(Script(script), may_restart.get_future().share()),
        &collector, nullptr);
    REQUIRE_MESSAGE(created.ok(), created.status().message());
    executor = std::move(*created);
  }
  ~Fixture() { Release(); }

  // Restarts of the worker may go on.
  void Release() {
    if (!std::exchange(released, true)) may_restart.set_value();
  }

  RequestSpec Spec(int ticket, int32_t max_new) const {
    RequestSpec spec;
    for (int32_t i = 0; i < 40; ++i) spec.prompt.push_back(100 + ticket % 50 + i);
    spec.max_new_tokens = max_new;
    spec.streaming = ticket % 2 == 0;
    spec.client_id = "id" + std::to_string(ticket % 3);
    spec.context = std::make_shared<Ticket>(ticket);
    return spec;
  }

  std::promise<void> may_restart;
  bool released = false;
  Collector collector;
  std::unique_ptr<Executor> executor;
};

// A step that no test waits for to its end.
constexpr char kEndlessSteps[] = R"({"step_us": 50000000})";

// Finds another device every time that it starts.
struct MovedWorker : ScriptedWorker {
  using ScriptedWorker::ScriptedWorker;
  StatusOr<WorkerInfo> Start(const Progress& progress) override {
    auto info = ScriptedWorker::Start(progress);
    if (info.ok()) info->max_num_tokens = ++starts * 1000;
    return info;
  }
  int32_t starts = 0;
};

}  // namespace

TEST_CASE("executor: what a step may hold is the worker's to say where it is left open") {
  ExecutorConfig config;
  config.max_num_seqs = 0;
  config.max_num_tokens = 0;
  const std::string script = R"({"max_num_seqs": 3, "max_num_tokens": 48})";
  Fixture open(script, config);
  CHECK(open.executor->Metrics().max_num_seqs == 3);
  for (int i = 0; i < 8; ++i) REQUIRE(open.executor->Submit(open.Spec(i, 5)).ok());
  REQUIRE(open.collector.WaitDone(8));  // a larger step would have been a broken contract
  for (int i = 0; i < 8; ++i) CHECK(open.collector.Get(i).error.ok());

  config.max_num_seqs = 2;
  Fixture given(script, config);
  CHECK(given.executor->Metrics().max_num_seqs == 2);
}

TEST_CASE("executor: a worker that comes back for other steps does not replace the one before") {
  Collector collector;
  ExecutorConfig config;
  config.max_num_tokens = 0;
  config.restart_backoff_ms = 1;
  config.max_restarts = 1;
  auto executor = Executor::Create(
      config, std::make_unique<MovedWorker>(Script(R"({"die_at_step": 1})")), &collector, nullptr);
  REQUIRE_MESSAGE(executor.ok(), executor.status().message());
  RequestSpec spec;
  spec.prompt = {1, 2, 3};
  spec.max_new_tokens = 4;
  spec.context = std::make_shared<Ticket>(0);
  REQUIRE((*executor)->Submit(std::move(spec)).ok());
  REQUIRE(collector.WaitDone(1));
  const std::string message = collector.Get(0).error.message();
  CHECK_MESSAGE(message.find("steps of 64 sequences and 2000 tokens; it had") != std::string::npos,
                message);
}

TEST_CASE("many threads submit and cancel; everyone gets one end, and all blocks come back") {
  Fixture f("{}");
  constexpr int kThreads = 4, kEach = 200;
  std::atomic<int> accepted{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        auto handle = f.executor->Submit(f.Spec(t * kEach + i, 1 + i % 30));
        if (!handle.ok()) continue;
        ++accepted;
        if (i % 7 == 0) f.executor->Cancel(*handle);
        if (i % 50 == 0) f.executor->CancelByClientId("id1");
      }
    });
  }
  for (std::thread& t : threads) t.join();
  REQUIRE(f.collector.WaitDone(accepted));
  f.executor->Shutdown(/*drain=*/true, kNever);
  const MetricsSnapshot m = f.executor->Metrics();
  CHECK(m.requests_accepted == static_cast<uint64_t>(accepted));
  CHECK(m.kv_blocks_used == 0);
  CHECK(m.running == 0);
  CHECK(m.waiting == 0);
}

TEST_CASE("streams continue across the deaths of their worker, nothing repeated or lost") {
  Fixture f(R"({"die_at_step": 12, "fault_count": 3})");
  for (int i = 0; i < 16; ++i) REQUIRE(f.executor->Submit(f.Spec(i, 64)).ok());
  REQUIRE(f.collector.WaitDone(16));
  for (int i = 0; i < 16; ++i) {
    const auto stream = f.collector.Get(i);
    const auto prompt = f.Spec(i, 64).prompt;
    REQUIRE(stream.tokens.size() == 64);
    for (size_t k = 0; k < 64; ++k) CHECK(stream.tokens[k] == prompt[k % prompt.size()]);
    CHECK(stream.ends == std::vector<FinishReason>{FinishReason::kLength});
  }
  CHECK(f.executor->Metrics().worker_restarts == 3);
  CHECK(f.executor->health() == Health::kReady);
}

TEST_CASE("what experts computed is counted over the deaths of the worker") {
  ExecutorConfig config;
  config.pipeline_depth = 1;
  Fixture f(R"({"expert_layers": [0, 2], "num_experts": 8, "die_at_step": 4})", config);
  const auto before = f.executor->Metrics().expert_load;
  REQUIRE(static_cast<bool>(before));
  CHECK(before->layers == std::vector<int32_t>{0, 2});
  CHECK(before->tokens == std::vector<uint64_t>(16, 0));
  CHECK(before->Imbalance(1) == 1);
  REQUIRE(f.executor->Submit(f.Spec(0, 8)).ok());
  REQUIRE(f.collector.WaitDone(1));
  CHECK(f.executor->Metrics().worker_restarts == 1);
  // Answered are 40 + 1 + 1 positions, then, by the next worker, its trial and 43 + 1 + 1 + 1 + 1.
  std::vector<uint64_t> expected(16, 0);
  for (const size_t end : {42, 1, 47}) {
    for (size_t position = 0; position < end; ++position) {
      ++expected[position % 8];
      ++expected[8 + position % 8];
    }
  }
  const auto after = f.executor->Metrics().expert_load;
  CHECK(after->tokens == expected);
  CHECK(after->Imbalance(0) == doctest::Approx(13.0 / (90.0 / 8)));
  CHECK(before->tokens == std::vector<uint64_t>(16, 0));
}

TEST_CASE("a worker that hangs is replaced after the watchdog") {
  ExecutorConfig config;
  config.watchdog_ms = 2000;  // no other step takes so long, on however busy a machine
  Fixture f(R"({"stall_at_step": 5})", config);
  REQUIRE(f.executor->Submit(f.Spec(0, 32)).ok());
  REQUIRE(f.collector.WaitDone(1));
  CHECK(f.collector.Get(0).tokens.size() == 32);
  CHECK(f.executor->Metrics().worker_restarts == 1);
}

TEST_CASE("a worker that never recovers: every request gets its error, health is dead") {
  ExecutorConfig config;
  config.max_restarts = 2;
  Fixture f(R"({"die_at_step": 1, "fault_count": 100})", config);
  for (int i = 0; i < 5; ++i) REQUIRE(f.executor->Submit(f.Spec(i, 8)).ok());
  REQUIRE(f.collector.WaitDone(5));
  for (int i = 0; i < 5; ++i) {
    CHECK(f.collector.Get(i).ends == std::vector<FinishReason>{FinishReason::kError});
  }
  CHECK(f.executor->health() == Health::kDead);
  const auto refused = f.executor->Submit(f.Spec(9, 8));
  CHECK(refused.status().code() == StatusCode::kUnavailable);
  CHECK(refused.status().message().find("max_restarts = 2") != std::string::npos);
}

TEST_CASE("what a dead model died of stays the reason; giving up is no restart") {
  struct StartsOnce : ScriptedWorker {
    using ScriptedWorker::ScriptedWorker;
    StatusOr<WorkerInfo> Start(const Progress& progress) override {
      if (started) return Status::Internal("starts only once");
      started = true;
      return ScriptedWorker::Start(progress);
    }
    bool started = false;
  };
  ExecutorConfig config;
  config.max_restarts = 1;
  Collector collector;
  auto executor = Executor::Create(
      config, std::make_unique<StartsOnce>(Script(R"({"die_at_step": 1})")), &collector, nullptr);
  REQUIRE(executor.ok());
  RequestSpec spec;
  spec.prompt = {1, 2, 3};
  spec.max_new_tokens = 8;
  spec.context = std::make_shared<Ticket>(0);
  REQUIRE((*executor)->Submit(std::move(spec)).ok());
  REQUIRE(collector.WaitDone(1));
  (*executor)->Shutdown(/*drain=*/false, 0);
  CHECK((*executor)->closed_why().message() ==
        "the worker failed: restart failed: starts only once (gave up after max_restarts = 1)");
  CHECK((*executor)->Metrics().worker_restarts == 1);
}

TEST_CASE("requests that are there at every death are ended; the worker goes on") {
  ExecutorConfig config;
  config.restart_backoff_ms = 1;
  // The first worker dies of the second step, each later one, after its trial, of the first.
  Fixture f(R"({"die_at_step": 2, "fault_count": 9})", config);
  for (int ticket : {0, 1}) {
    REQUIRE(f.executor->Submit(f.Spec(ticket, 8)).ok());
    REQUIRE(f.collector.WaitDone(ticket + 1));
    CHECK(f.collector.Get(ticket).ends == std::vector<FinishReason>{FinishReason::kError});
  }
  REQUIRE(f.executor->Submit(f.Spec(2, 8)).ok());
  REQUIRE(f.collector.WaitDone(3));
  CHECK(f.collector.Get(2).tokens.size() == 8);
  CHECK(f.executor->health() == Health::kReady);
  CHECK(f.executor->Metrics().worker_restarts == 9);
}

TEST_CASE("a new worker is not ready before it has passed its trial") {
  ExecutorConfig config;
  config.watchdog_ms = 200;
  config.restart_backoff_ms = 1;
  // The first worker hangs at a request, the second one at its trial.
  Fixture f(R"({"stall_at_step": 1, "fault_count": 2})", config);
  REQUIRE(f.executor->Submit(f.Spec(0, 8)).ok());
  int looks = 0;
  for (uint64_t restarts = 0; restarts < 2; restarts = f.executor->Metrics().worker_restarts) {
    if (restarts == 0) continue;
    const Health health = f.executor->health();
    if (f.executor->Metrics().worker_restarts > 1) break;
    REQUIRE(health == Health::kRecovering);
    ++looks;
  }
  CHECK(looks > 0);
  REQUIRE(f.collector.WaitDone(1));
  CHECK(f.collector.Get(0).tokens.size() == 8);
  CHECK(f.executor->health() == Health::kReady);
}

TEST_CASE("a worker that fails its trials is given up") {
  ExecutorConfig config;
  config.restart_backoff_ms = 1;
  Fixture f(R"({"die_at_step": 1, "fault_count": 4})", config);
  REQUIRE(f.executor->Submit(f.Spec(0, 8)).ok());
  REQUIRE(f.collector.WaitDone(1));
  CHECK(f.collector.Get(0).ends == std::vector<FinishReason>{FinishReason::kError});
  CHECK(f.executor->health() == Health::kDead);
  CHECK(f.executor->Metrics().worker_restarts == 3);
}

TEST_CASE("cancels and deadlines are served while the worker restarts") {
  Fixture f(R"({"die_at_step": 3})", {}, /*hold=*/true);
  auto handle = f.executor->Submit(f.Spec(0, 1000));
  REQUIRE(handle.ok());
  RequestSpec timed = f.Spec(1, 1000);
  REQUIRE(f.collector.WaitTokens(1));
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  timed.deadline = t.tv_sec * int64_t{1000000000} + t.tv_nsec + 100000000;
  REQUIRE(f.executor->Submit(std::move(timed)).ok());
  f.executor->Cancel(*handle);
  REQUIRE(f.collector.WaitDone(2));
  CHECK(f.executor->health() == Health::kRecovering);
  CHECK(f.collector.Get(0).ends == std::vector<FinishReason>{FinishReason::kCancelled});
  CHECK(f.collector.Get(1).ends == std::vector<FinishReason>{FinishReason::kDeadline});
}

TEST_CASE("draining finishes what was accepted and refuses the rest") {
  Fixture f(R"({"step_us": 1000})");
  for (int i = 0; i < 4; ++i) REQUIRE(f.executor->Submit(f.Spec(i, 50)).ok());
  std::thread drain([&] { f.executor->Shutdown(/*drain=*/true, kNever); });
  Status refused;
  int ticket = 100;
  while (refused.ok()) {  // until the other thread has closed the door
    auto handle = f.executor->Submit(f.Spec(ticket++, 1));
    refused = handle.status();
  }
  CHECK(refused.code() == StatusCode::kUnavailable);
  drain.join();
  for (int i = 0; i < 4; ++i) CHECK(f.collector.Get(i).tokens.size() == 50);
  CHECK(f.executor->health() == Health::kStopped);
}

TEST_CASE("a model that drains is not ready, even once its worker is back") {
  Fixture f(R"({"die_at_step": 3, "step_us": 1000})", {}, /*hold=*/true);
  REQUIRE(f.executor->Submit(f.Spec(0, 100)).ok());
  REQUIRE(f.collector.WaitTokens(1));
  while (f.executor->health() != Health::kRecovering) std::this_thread::yield();
  std::thread drain([&] { f.executor->Shutdown(/*drain=*/true, kNever); });
  while (f.executor->closed_why().ok()) std::this_thread::yield();
  f.Release();
  while (f.executor->health() == Health::kRecovering) std::this_thread::yield();
  Health health = f.executor->health();
  for (; health != Health::kStopped; health = f.executor->health()) {
    if (health == Health::kReady) break;
    std::this_thread::yield();
  }
  CHECK(health == Health::kStopped);
  drain.join();
  CHECK(f.collector.Get(0).tokens.size() == 100);
  CHECK(f.executor->Metrics().worker_restarts == 1);
}

TEST_CASE("a drain past its deadline ends what is left") {
  Fixture f(kEndlessSteps);
  REQUIRE(f.executor->Submit(f.Spec(0, 2000)).ok());
  f.executor->Shutdown(/*drain=*/false, 0);
  const auto stream = f.collector.Get(0);
  CHECK(stream.ends == std::vector<FinishReason>{FinishReason::kCancelled});
  CHECK(stream.error.message() == "shutting down");
}

TEST_CASE("the queue bound holds at submission, whatever the executor's thread is doing") {
  ExecutorConfig config;
  config.max_num_seqs = 1;
  config.max_queue_requests = 3;
  Fixture f(kEndlessSteps, config);
  int refused = 0;
  for (int i = 0; i < 20; ++i) refused += f.executor->Submit(f.Spec(i, 2)).ok() ? 0 : 1;
  CHECK(refused >= 16);
  CHECK(f.executor->Metrics().requests_rejected == static_cast<uint64_t>(refused));
  f.executor->Shutdown(/*drain=*/false, 0);
  REQUIRE(f.collector.WaitDone(20 - refused));
}

TEST_CASE("room is told before a submission, by the same bounds") {
  ExecutorConfig config;
  config.max_num_seqs = 1;
  config.max_queue_requests = 2;
  Fixture f(kEndlessSteps, config);
  CHECK(f.executor->CheckRoom({2, 2}, 0).value() == 0);
  CHECK(f.executor->CheckRoom({1, 1}, 0).value() == 1);
  CHECK(f.executor->CheckRoom({1, 1}, 0, {1, 1}).value() == 0);
  CHECK(f.executor->CheckRoom({9, 9}, 0).value() == 0);  // never: Submit() says so
  int accepted = 0;
  while (f.executor->Submit(f.Spec(accepted, 4)).ok()) ++accepted;
  const Status full = f.executor->CheckRoom({1, 1}, 0).status();
  CHECK(full.code() == StatusCode::kUnavailable);
  CHECK(full.message() ==
        "the queue is full: 2 sequences wait, 1 more would exceed max_queue_requests = 2");
  CHECK(f.executor->Metrics().requests_rejected == 2);
  f.executor->Shutdown(/*drain=*/false, 0);
  REQUIRE(f.collector.WaitDone(accepted));
}

TEST_CASE("requests that are submitted together are all taken, or none") {
  ExecutorConfig config;
  config.max_num_seqs = 1;
  config.max_queue_requests = 3;
  Fixture f(kEndlessSteps, config);
  const auto specs = [&](std::vector<int32_t> lengths) {
    std::vector<RequestSpec> all;
    for (size_t i = 0; i < lengths.size(); ++i) {
      all.push_back(f.Spec(static_cast<int>(i), lengths[i]));
    }
    return all;
  };
  CHECK(f.executor->SubmitAll(specs({4, 4, 0})).status().code() == StatusCode::kInvalidArgument);
  CHECK(f.executor->SubmitAll(specs({4, 4, 4, 4})).status().code() == StatusCode::kUnavailable);
  CHECK(f.executor->CheckRoom({3, 3}, 0).ok());
  CHECK(f.executor->SubmitAll({}).value().empty());
  const auto handles = f.executor->SubmitAll(specs({4, 4, 4}));
  REQUIRE(handles.ok());
  CHECK(handles->size() == 3);
  CHECK((*handles)[0].id != (*handles)[2].id);
  f.executor->Shutdown(/*drain=*/false, 0);
  REQUIRE(f.collector.WaitDone(3));
}

TEST_CASE("a full queue of a worse class refuses its own class and takes a better one") {
  ExecutorConfig config;
  config.max_num_seqs = 1;
  config.max_queue_requests = 2;
  Fixture f(kEndlessSteps, config);
  REQUIRE(f.executor->Submit(f.Spec(0, 10)).ok());
  while (f.executor->Metrics().running == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const auto submit = [&](int ticket, int32_t priority) {
    RequestSpec spec = f.Spec(ticket, 2);
    spec.priority = priority;
    return f.executor->Submit(std::move(spec)).status();
  };
  CHECK(submit(1, 9).ok());
  CHECK(submit(2, 9).ok());
  CHECK(submit(3, 9).code() == StatusCode::kUnavailable);
  CHECK(f.executor->CheckRoom({1, 1}, 9).status().code() == StatusCode::kUnavailable);
  CHECK(f.executor->CheckRoom({2, 2}, 8).value() == 0);
  CHECK(submit(4, 0).ok());
  CHECK(submit(5, 0).ok());
  CHECK(submit(6, 0).code() == StatusCode::kUnavailable);  // nothing worse is left
  f.executor->Shutdown(/*drain=*/false, 0);
  REQUIRE(f.collector.WaitDone(5));
  CHECK(f.executor->Metrics().requests_displaced == 2);
  for (const int ticket : {1, 2}) {
    const auto stream = f.collector.Get(ticket);
    CHECK(stream.ends == std::vector<FinishReason>{FinishReason::kError});
    CHECK(stream.error.code() == StatusCode::kUnavailable);
    CHECK(stream.error.message() ==
          "the queue is full: this request's place went to one of a better priority class");
  }
  for (const int ticket : {0, 4, 5}) {
    CHECK(f.collector.Get(ticket).ends == std::vector<FinishReason>{FinishReason::kCancelled});
  }
}

}  // namespace slipstream
