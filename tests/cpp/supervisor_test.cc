// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/supervisor.h"

#include <string>
#include <vector>

#include "engine_fixture.h"

namespace slipstream {
namespace {

constexpr TimeNs kMs = 1000000;
using State = Supervisor::State;

struct SupervisorFixture : EngineFixture {
  explicit SupervisorFixture(const ExecutorConfig& config)
      : EngineFixture(config), supervisor(config, &engine) {}

  static ExecutorConfig Config(int32_t max_restarts, int32_t backoff_ms = 200) {
    ExecutorConfig config = DefaultConfig();
    config.max_restarts = max_restarts;
    config.restart_backoff_ms = backoff_ms;
    config.watchdog_ms = 50;
    return config;
  }

  void Send() {
    REQUIRE(Build());
    supervisor.OnSent(now);
  }
  void Restart() {
    REQUIRE(supervisor.BeginStart(supervisor.next_wake()));
    REQUIRE(supervisor.state() == State::kStarting);
    supervisor.OnStarted(Status::Ok(), ++now);
    REQUIRE(supervisor.serving());
  }
  // Of the requests that ended since the last call.
  std::vector<std::string> Errors() {
    std::vector<std::string> errors;
    for (const Event& event : engine.TakeEvents()) {
      if (event.reason != FinishReason::kNone) errors.push_back(event.error.message());
    }
    return errors;
  }

  Supervisor supervisor;
};

}  // namespace

TEST_CASE("the first restart is immediate, each later one in a row waits twice as long") {
  SupervisorFixture f(SupervisorFixture::Config(/*max_restarts=*/20, /*backoff_ms=*/300));
  for (const TimeNs ms : {0, 600, 1200, 2400, 4800, 9600, 10000, 10000}) {
    f.supervisor.OnFailure("gone", f.now);
    REQUIRE(f.supervisor.state() == State::kBackOff);
    CHECK(f.supervisor.next_wake() == f.now + ms * kMs);
    CHECK(!f.supervisor.BeginStart(f.now + ms * kMs - 1));
    f.now += ms * kMs;
    f.Restart();
  }
  CHECK(f.supervisor.failure().count == 8);
  CHECK(f.supervisor.failure().why == "the worker failed: gone");
  CHECK(f.Metrics().worker_restarts == 8);
  // A step that is answered ends the row.
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  f.Send();
  f.Answer(f.plan);
  f.supervisor.OnAnswer(f.now);
  f.supervisor.OnFailure("gone", f.now);
  CHECK(f.supervisor.next_wake() == f.now);
}

TEST_CASE("a start that fails counts as a failure; past max_restarts all requests end") {
  SupervisorFixture f(SupervisorFixture::Config(/*max_restarts=*/2));
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  REQUIRE(f.Submit(2, f.Spec(Iota(50, 6), 4)).ok());
  f.Send();
  f.supervisor.OnFailure("gone", f.now);
  REQUIRE(f.supervisor.BeginStart(f.now));
  f.supervisor.OnStarted(Status::Internal("no memory"), f.now);
  CHECK(f.supervisor.next_wake() == f.now + 400 * kMs);
  CHECK(f.supervisor.given_up().ok());
  REQUIRE(f.supervisor.BeginStart(f.now + 400 * kMs));
  CHECK(f.Errors().empty());
  f.supervisor.OnStarted(Status::Internal("no memory"), f.now + 500 * kMs);
  CHECK(f.supervisor.state() == State::kGivenUp);
  CHECK(f.supervisor.next_wake() == kNever);
  const std::string why =
      "the worker failed: restart failed: no memory (gave up after max_restarts = 2)";
  CHECK(f.supervisor.given_up().message() == why);
  CHECK(f.Errors() == std::vector<std::string>{why, why});
  CHECK(f.Metrics().worker_restarts == 2);
  // One that was accepted before, but comes only now.
  REQUIRE(f.Submit(3, f.Spec(Iota(0, 6), 4)).ok());
  f.supervisor.EndLateRequests(f.now);
  CHECK(f.Errors() == std::vector<std::string>{why});
  CHECK(f.engine.idle());
}

TEST_CASE("with max_restarts = 0 the first failure is the last") {
  SupervisorFixture f(SupervisorFixture::Config(0));
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  f.Send();
  f.supervisor.OnFailure("gone", f.now);
  CHECK(f.supervisor.state() == State::kGivenUp);
  CHECK(f.Errors().size() == 1);
  CHECK(f.Metrics().worker_restarts == 0);
}

TEST_CASE("workers that pass their trials are not given up, whatever requests do to them") {
  SupervisorFixture f(SupervisorFixture::Config(2));
  for (RequestId id = 1; id <= 5; ++id) REQUIRE(f.Submit(id, f.Spec(Iota(0, 6), 4)).ok());
  int failures = 0;
  while (f.engine.live_requests() > 0) {
    f.Send();
    if (f.engine.in_trial()) {
      f.Answer(f.plan);
      f.supervisor.OnAnswer(f.now);
      continue;
    }
    ++failures;
    f.supervisor.OnFailure("gone", f.now);
    CHECK(f.supervisor.next_wake() == f.now);  // at once: each is the first of a row
    f.Restart();
  }
  CHECK(f.Errors() == std::vector<std::string>(5, "the worker failed: gone"));
  CHECK(f.Metrics().worker_restarts == static_cast<uint64_t>(failures));
}

TEST_CASE("workers that fail their trials are given up, and nobody is blamed before") {
  SupervisorFixture f(SupervisorFixture::Config(2));
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  f.Send();
  for (int failure = 1; failure <= 2; ++failure) {
    f.supervisor.OnFailure("gone", f.now);
    CHECK(f.Errors().empty());
    f.Restart();
    f.Send();
    CHECK(f.engine.in_trial());
  }
  f.supervisor.OnFailure("gone", f.now);
  CHECK(f.supervisor.state() == State::kGivenUp);
  CHECK(f.Errors().size() == 1);
  CHECK(f.Metrics().worker_restarts == 2);
}

TEST_CASE("the watchdog gives each step its time from when it could begin") {
  ExecutorConfig config = SupervisorFixture::Config(3);
  config.pipeline_depth = 2;
  SupervisorFixture f(config);
  CHECK(f.supervisor.next_wake() == kNever);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  f.Send();
  const StepPlan first = f.plan;
  const TimeNs sent = f.now;
  f.now += 10 * kMs;
  f.Send();
  CHECK(f.supervisor.next_wake() == sent + 50 * kMs);
  CHECK(f.supervisor.CheckWatchdog(sent + 50 * kMs - 1).ok());
  CHECK(f.supervisor.CheckWatchdog(sent + 50 * kMs).message() ==
        "no answer to a step within watchdog_ms = 50");
  f.now = sent + 49 * kMs;
  f.Answer(first);
  f.supervisor.OnAnswer(f.now);
  CHECK(f.supervisor.next_wake() == f.now + 50 * kMs);
  CHECK(f.supervisor.CheckWatchdog(f.now + 50 * kMs - 1).ok());
  CHECK(!f.supervisor.CheckWatchdog(f.now + 50 * kMs).ok());
  f.supervisor.OnFailure("hangs", f.now);
  CHECK(f.supervisor.CheckWatchdog(f.now + 500 * kMs).ok());
}

TEST_CASE("watchdog_ms = 0 is no watchdog") {
  ExecutorConfig config = SupervisorFixture::Config(3);
  config.watchdog_ms = 0;
  SupervisorFixture f(config);
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  f.Send();
  CHECK(f.supervisor.next_wake() == kNever);
  CHECK(f.supervisor.CheckWatchdog(f.now + 1000000 * kMs).ok());
}

TEST_CASE("a drain waits for requests, also while the worker restarts, until its deadline") {
  SupervisorFixture f(SupervisorFixture::Config(3));
  REQUIRE(f.Submit(1, f.Spec(Iota(0, 6), 4)).ok());
  f.Send();
  f.supervisor.OnFailure("gone", f.now);
  const TimeNs deadline = f.now + 100;
  CHECK(!f.supervisor.Drained(deadline, deadline - 1));
  CHECK(f.Errors().empty());
  CHECK(f.supervisor.Drained(deadline, deadline));
  CHECK(f.Errors() == std::vector<std::string>{"shutting down"});
  CHECK(f.supervisor.Drained(kNever, deadline));
}

}  // namespace slipstream
