// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "executor/engine.h"
#include "executor/supervisor.h"
#include "simulation/dice.h"
#include "simulation/fairness.h"
#include "simulation/ledger.h"
#include "simulation/overseer.h"
#include "simulation/script.h"
#include "simulation/traffic.h"
#include "simulation/worker.h"
#include "simulation/workload.h"

namespace slipstream::simulation {

// One disturbance at one moment; request: whom it strikes.
struct Injection {
  enum class Kind : uint8_t {
    kCancel,
    kDeadline,
    kDeadly,          // from here on, any step that names the request kills the worker
    kDeath,           // of the worker
    kDeathAndCancel,  // of the request, one moment later: while the worker is restarted
    kDeathAndDrain,   // likewise
    kDeathAndStop,    // likewise
    kHang,            // of the worker
    kGiveUp,          // the worker dies and cannot be started again
    kDrain,           // shutdown: whoever was accepted runs to its end
    kStop,            // shutdown: whoever was accepted ends now
  };
  Kind kind = Kind::kCancel;
  int64_t moment = 0;
  TimeNs at = 0;  // when that moment is; for kDeadline
  RequestId request = 0;
};

// A discrete-event simulation of the Engine, the Supervisor and a strict worker: virtual time, one
// thread. It plays the part of the Executor's thread, turn by turn: requests, cancels and deadlines
// go in, results and failures come back from the worker, as many steps are built as the pipeline
// takes, and the worker is restarted when and as often as the Supervisor says.
//
// A *moment* follows every step that is built, every answer that is applied, and every turn without
// a worker. Each has a time of its own. At each of them everything is checked
// (Engine::CheckIntegrity, Ledger, Fairness, Overseer; the worker holds plans to their contract),
// and random deaths and cancels strike.
class Simulation {
 public:
  struct Options {
    std::optional<Injection> injection;
    bool keep_outcomes = false;
    std::function<void(int64_t requests)> progress;  // called at every arrival, if there is one
  };
  // What the run amounted to.
  struct Tally {
    int64_t requests = 0;
    int64_t rejected = 0;  // by limits or a full queue
    int64_t closed = 0;    // by an Executor that drains or has given up
    uint64_t steps = 0;
    uint64_t failures = 0;  // of the worker
    uint64_t hangs = 0;     // of them, found by the watchdog
    uint64_t give_ups = 0;
    uint64_t drains = 0;
    uint64_t drains_recovering = 0;  // of them, begun while the worker was restarted
    uint64_t preemptions = 0;
    uint64_t hit_tokens = 0;
    TimeNs end = 0;            // virtual
    int64_t build_ns = 0;      // of the real clock, in BuildStep
    int64_t scheduler_ns = 0;  // likewise, in Submit, BuildStep and OnResult
  };

  Simulation(const Workload& workload, Options options);

  // To the end of all requests. Empty when everything held, else what did not.
  std::string Run();

  const Tally& tally() const { return tally_; }
  const Ledger& ledger() const { return ledger_; }
  const Fairness& fairness() const { return fairness_; }
  const Overseer& overseer() const { return overseer_; }
  // With keep_outcomes: the time of each moment, and when each request came.
  const std::vector<TimeNs>& moments() const { return moments_; }
  const std::map<RequestId, int64_t>& arrived_at() const { return arrived_at_; }

 private:
  bool Broken() const { return !broken_.empty(); }
  void Break(const std::string& what);
  void Expect(const std::string& wrong);  // breaks unless it is empty
  bool GivenUp() const { return supervisor_.state() == Supervisor::State::kGivenUp; }
  void TakeIn();
  void Submit();
  void CheckRefusal(const RequestSpec& spec, const Status& status);
  void Receive();
  void SendSteps();
  void CheckWatchdog();
  void Started();
  void Moment();
  void Inject();
  void Cancel(RequestId id);
  void CancelClient(const std::string& client_id);
  void BeginDrain(TimeNs patience);
  void Fail(const std::string& why);
  void AfterFailure(const std::vector<SequenceKey>& named);
  void Publish();
  bool HasEnded();
  void Advance();
  void CheckQuiescence();

  const Workload workload_;
  const Options options_;
  const Script script_;
  Worker worker_;
  Engine engine_;
  Supervisor supervisor_;
  Traffic traffic_;
  Ledger ledger_;
  Fairness fairness_;
  Overseer overseer_;
  Dice dice_;
  TimeNs now_ = 1;
  int64_t moment_ = 0;
  std::optional<Arrival> next_arrival_;
  RequestId last_id_ = 0;
  bool took_late_ = false;     // a request since it gave up
  TimeNs drain_deadline_ = 0;  // while draining_
  bool draining_ = false;
  // By moment; with a client id: of all that have it.
  std::multimap<int64_t, std::pair<RequestId, std::string>> cancels_;
  StepPlan plan_;
  Tally tally_;
  std::vector<TimeNs> moments_;
  std::map<RequestId, int64_t> arrived_at_;
  std::string broken_;
};

}  // namespace slipstream::simulation
