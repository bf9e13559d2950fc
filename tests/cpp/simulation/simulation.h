// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "executor/engine.h"
#include "simulation/dice.h"
#include "simulation/fairness.h"
#include "simulation/ledger.h"
#include "simulation/traffic.h"
#include "simulation/workload.h"
#include "worker_link/scripted_model.h"

namespace slipstream::simulation {

// One disturbance at one moment; request: whom it strikes.
struct Injection {
  enum class Kind : uint8_t { kCancel, kDeadline, kDeath };
  Kind kind = Kind::kCancel;
  int64_t moment = 0;
  TimeNs at = 0;  // when that moment is; for kDeadline
  RequestId request = 0;
};

// A discrete-event simulation of the Engine and a strict worker: virtual time, one thread. It plays
// the part of the Executor's thread: requests, cancels and deadlines go in, results and deaths come
// back from the worker, as many steps are built as the pipeline takes.
//
// A *moment* follows every step that is built and every answer that is applied. Each has a time of
// its own. At each of them everything is checked (Engine::CheckIntegrity, Ledger, Fairness; the
// worker holds plans to their contract), and random deaths and cancels strike.
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
    uint64_t steps = 0;
    uint64_t deaths = 0;
    uint64_t preemptions = 0;
    uint64_t hit_tokens = 0;
    int64_t build_ns = 0;  // of the real clock, in BuildStep
  };

  Simulation(const Workload& workload, Options options);

  // To the end of all requests. Empty when everything held, else what did not.
  std::string Run();

  const Tally& tally() const { return tally_; }
  const Ledger& ledger() const { return ledger_; }
  const Fairness& fairness() const { return fairness_; }
  // With keep_outcomes: the time of each moment, and when each request came.
  const std::vector<TimeNs>& moments() const { return moments_; }
  const std::map<RequestId, int64_t>& arrived_at() const { return arrived_at_; }

 private:
  struct InFlight {
    StepResult result;
    TimeNs ready = 0;
    std::vector<SequenceKey> named;
  };

  bool Broken() const { return !broken_.empty(); }
  void Break(const std::string& what);
  bool Recovering() const { return now_ < recovered_at_; }
  void Submit();
  void CheckRefusal(const RequestSpec& spec, const Status& status);
  void Receive();
  void SendSteps();
  void Moment();
  void Inject();
  void Cancel(RequestId id);
  void KillWorker();
  void Publish();
  void Advance();
  void CheckQuiescence();

  const Workload workload_;
  const Options options_;
  ScriptedModel model_;
  Engine engine_;
  Traffic traffic_;
  Ledger ledger_;
  Fairness fairness_;
  Dice dice_;
  TimeNs now_ = 1;
  int64_t moment_ = 0;
  TimeNs recovered_at_ = 0;
  TimeNs last_ready_ = 0;
  std::optional<Arrival> next_arrival_;
  RequestId last_id_ = 0;
  std::multimap<int64_t, RequestId> cancels_;  // by moment
  std::deque<InFlight> in_flight_;
  StepPlan plan_;
  Tally tally_;
  std::vector<TimeNs> moments_;
  std::map<RequestId, int64_t> arrived_at_;
  std::string broken_;
};

}  // namespace slipstream::simulation
