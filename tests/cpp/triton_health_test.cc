// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// What becomes of a process whose model is dead: HealthWatch alone, and models on the host double
// in processes of their own.

#include <doctest/doctest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "triton/health_watch.h"
#include "triton_host.h"
#include "triton_models.h"

namespace slipstream::triton {
namespace {

constexpr char kDeathCase[] = "health: in a process of its own";
constexpr char kDeathVariable[] = "SLIPSTREAM_TEST_DEATH";

// A model, as its HealthWatch sees it.
class Watched {
 public:
  explicit Watched(std::optional<bool> exit_on_fatal) {
    HealthWatch::Options options;
    options.model = "m";
    options.exit_on_fatal = exit_on_fatal;
    options.health = [this] {
      ++looks;
      return health.load();
    };
    options.failure = [] { return WorkerFailure{}; };
    options.idle = [this] {
      ++waits;
      return idle.load();
    };
    options.withdraw = [this] {
      ++withdrawals;
      return withdrawal.load();
    };
    options.serving = [this] { return serving.load(); };
    options.drain_timeout_ms = 1000;
    options.end_requests = [this] { ++ends; };
    options.last = [this] { return last.load(); };
    options.exit = [this](int code) { exit_code = code; };
    watch_ = std::make_unique<HealthWatch>(std::move(options));
  }

  void WaitLooks(int more) {
    const int until = looks + more;
    WaitFor([&] { return looks >= until; });
  }

  std::atomic<Health> health{Health::kReady};
  std::atomic<Withdrawal> withdrawal{Withdrawal::kLater};
  std::atomic<bool> last{true};
  std::atomic<bool> idle{true};
  std::atomic<bool> serving{false};
  std::atomic<int> ends{0};
  std::atomic<int> looks{0};
  std::atomic<int> waits{0};
  std::atomic<int> withdrawals{0};
  std::atomic<int> exit_code{-1};

 private:
  std::unique_ptr<HealthWatch> watch_;  // ends first
};

TEST_CASE("health: which deaths end the process") {
  struct Case {
    std::unique_ptr<Watched> watched;
    bool exits;
    int withdrawals;  // -1: any number
    std::string name;
  };
  std::vector<Case> cases;
  for (const std::optional<bool> setting : {std::optional<bool>(), {true}, {false}}) {
    for (const auto withdrawal : {Withdrawal::kDone, Withdrawal::kRefused, Withdrawal::kLater}) {
      for (const bool last : {false, true}) {
        const bool refused = withdrawal == Withdrawal::kRefused;
        const bool exits = setting.value_or(refused && last);
        const int settled = withdrawal == Withdrawal::kLater ? -1 : 1;
        cases.push_back({std::make_unique<Watched>(setting), exits,
                         setting.value_or(false) ? 0 : settled,
                         std::string(!setting   ? "unset"
                                     : *setting ? "true"
                                                : "false") +
                             ", " + std::to_string(static_cast<int>(withdrawal)) +
                             (last ? ", the last" : ", one of several")});
        cases.back().watched->withdrawal = withdrawal;
        cases.back().watched->last = last;
      }
    }
  }
  for (const Case& c : cases) c.watched->WaitLooks(2);
  for (const Case& c : cases) {
    CHECK(c.watched->exit_code == -1);
    CHECK(c.watched->withdrawals == 0);
    c.watched->health = Health::kDead;
  }
  for (const Case& c : cases) {
    CAPTURE(c.name);
    if (c.exits) {
      WaitFor([&] { return c.watched->exit_code != -1; });
      CHECK(c.watched->exit_code == 70);
    } else {
      c.watched->WaitLooks(9);  // an exit would take six
      CHECK(c.watched->exit_code == -1);
    }
    if (c.withdrawals >= 0) CHECK(c.watched->withdrawals == c.withdrawals);
    if (c.withdrawals < 0) CHECK(c.watched->withdrawals > 1);
  }
}

TEST_CASE("health: a model that cannot be withdrawn ends the process once it is the last") {
  Watched watched(std::nullopt);
  watched.last = false;
  watched.health = Health::kDead;
  watched.WaitLooks(3);
  watched.withdrawal = Withdrawal::kRefused;
  watched.WaitLooks(9);
  CHECK(watched.exit_code == -1);
  watched.last = true;
  WaitFor([&] { return watched.exit_code == 70; });
}

TEST_CASE("health: the process waits for the clients' errors") {
  Watched watched(true);
  watched.idle = false;
  watched.health = Health::kDead;
  WaitFor([&] { return watched.waits > 8; });
  CHECK(watched.exit_code == -1);
  watched.idle = true;
  WaitFor([&] { return watched.exit_code == 70; });
}

TEST_CASE("health: requests that outlive the server's drain are ended, once") {
  Watched watched(std::nullopt);
  watched.WaitLooks(14);  // longer than a drain: it has not started yet
  watched.serving = true;
  watched.WaitLooks(2);
  const auto start = std::chrono::steady_clock::now();
  watched.serving = false;
  WaitFor([&] { return watched.ends > 0; });
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(1000));
  watched.WaitLooks(14);
  CHECK(watched.ends == 1);
}

TEST_CASE("health: a server that ends gives its requests drain_timeout_ms") {
  host::Repository repository;
  const auto model =
      Llm(R"({"step_us": 5000})", true, {{"drain_timeout_ms", "700"}}, repository.server());
  const auto endless = Send(model.get(), Ask({1}, 4000, true));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // it is seen to serve
  repository.SetServing(false);
  const auto brief = Send(model.get(), Ask({1}, 10, true));
  CHECK_FALSE(static_cast<bool>(brief->WaitFinal().back().error));
  const auto error = endless->WaitFinal().back().error;
  REQUIRE(static_cast<bool>(error));
  CHECK(error->first == TRITONSERVER_ERROR_UNAVAILABLE);
  CHECK(error->second == "shutting down");
  CheckClean({brief, endless});
}

TEST_CASE("health: a model that dies while the server starts is withdrawn afterwards") {
  host::Repository repository;
  repository.SetServing(false);
  const auto model = Llm(R"({"die_at_step": 2})", true,
                         {{"max_restarts", "0"}, {"exit_on_fatal", ""}}, repository.server());
  const auto lost = Send(model.get(), Ask({1}, 9, true));
  CHECK(static_cast<bool>(lost->WaitFinal().back().error));
  std::this_thread::sleep_for(std::chrono::milliseconds(1000));  // in vain, and no exit
  repository.SetServing(true);
  CHECK(repository.WaitCalls(2)[0] == "unload llm");
  CheckClean({lost});
}

// What follows are processes, since some of them end.

std::unique_ptr<Model> Mortal(const std::string& name, const std::string& exit_on_fatal,
                              TRITONSERVER_Server* server) {
  return Llm(R"({"die_at_step": 4})", true,
             {{"max_restarts", "0"}, {"exit_on_fatal", exit_on_fatal}}, server, name);
}

void EndWorker(Model* model) {
  const auto client = Send(model, Ask({1}, 50, true));
  CHECK(static_cast<bool>(client->WaitFinal().back().error));
}

// An exit takes little more than half a second.
void StayForAWhile() { std::this_thread::sleep_for(std::chrono::milliseconds(1500)); }

struct Death {
  const char* name;
  int code;  // of the process
  std::function<void()> run;
};

std::vector<Death> Deaths() {
  const auto one = [](const char* exit_on_fatal, bool control) {
    return [=] {
      host::Repository repository;
      const auto model = Mortal("llm", exit_on_fatal, control ? repository.server() : nullptr);
      EndWorker(model.get());
      StayForAWhile();
    };
  };
  return {
      {"unset, no control", 70, one("", false)},
      {"unset, control", 0, one("", true)},
      {"true, control", 70, one("true", true)},
      {"false, no control", 0, one("false", false)},
      {"one of two", 0,
       [] {
         const auto dead = Mortal("dead", "", nullptr);
         const auto alive = Mortal("alive", "", nullptr);
         EndWorker(dead.get());
         StayForAWhile();
         const auto served = Send(alive.get(), Ask({1}, 2, true));
         CHECK_FALSE(static_cast<bool>(served->WaitFinal().back().error));
       }},
      {"both of two", 70,
       [] {
         const auto first = Mortal("first", "", nullptr);
         const auto second = Mortal("second", "", nullptr);
         EndWorker(first.get());
         EndWorker(second.get());
         StayForAWhile();
       }},
      {"beside one that is unloaded", 70,
       [] {
         const auto dead = Mortal("dead", "", nullptr);
         auto alive = Mortal("alive", "", nullptr);
         EndWorker(dead.get());
         StayForAWhile();
         alive.reset();
         StayForAWhile();
       }},
      {"beside one that is being loaded", 0,
       [] {
         const auto dead = Mortal("dead", "", nullptr);
         std::thread loading([] {
           const auto late = Llm(R"({"start_ms": 2000})", true, {}, nullptr, "late");
           const auto served = Send(late.get(), Ask({1}, 2, true));
           const bool failed = static_cast<bool>(served->WaitFinal().back().error);
           std::_Exit(failed ? 1 : 0);  // before it is unloaded, and the dead one the last
         });
         EndWorker(dead.get());
         loading.join();
       }},
  };
}

TEST_CASE("health: in a process of its own" * doctest::skip()) {
  const char* const which = std::getenv(kDeathVariable);
  if (which == nullptr) return;
  for (const Death& death : Deaths()) {
    if (death.name == std::string(which)) return death.run();
  }
  FAIL("no such case");
}

pid_t Start(const Death& death) {
  const std::string only = std::string("-tc=") + kDeathCase;
  const std::string which = std::string(kDeathVariable) + "=" + death.name;
  const char* const arguments[] = {"tests", "--no-skip", "--quiet", only.c_str(), nullptr};
  const char* const environment[] = {which.c_str(), nullptr};
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, kThisBinary, nullptr, nullptr, const_cast<char* const*>(arguments),
                  const_cast<char* const*>(environment));
  REQUIRE(error == 0);
  return pid;
}

TEST_CASE("health: the process ends with the last model that the server cannot be told of") {
  std::vector<std::pair<Death, pid_t>> started;
  for (const Death& death : Deaths()) started.emplace_back(death, Start(death));
  for (const auto& [death, pid] : started) {
    CAPTURE(std::string(death.name));
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == death.code);
  }
}

}  // namespace
}  // namespace slipstream::triton
