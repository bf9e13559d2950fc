// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/engine_config.h"
#include "executor/request.h"
#include "worker_link/scripted_config.h"

namespace slipstream::simulation {

// What requests look like: the most of each, or the chance of it per request.
struct TrafficShape {
  int32_t max_prompt = 40;
  int32_t max_new = 20;
  TimeNs mean_gap = 1000000;  // between arrivals
  double burst = 0;           // arrives with the one before
  int32_t prefixes = 3;       // different shared beginnings; 0 = none are shared
  double follow_up = 0;       // continues the conversation of an earlier request
  int32_t salts = 1;
  int32_t siblings = 1;  // num_return_sequences
  double stops = 0;      // end ids, stop sequences, min_tokens
  double text = 0;       // text, most of it with stop strings
  double logprobs = 0;
  double generation_logits = 0;
  double retention = 0;
  int32_t retention_ms = 20;  // the longest duration
  double priorities = 0;
  double deadlines = 0;
  TimeNs max_deadline = 50000000;  // from its arrival
  double cancels = 0;
  double client_ids = 0;          // has an id that others have too; some are cancelled by it
  int32_t max_cancel_after = 40;  // moments
  double whole = 0;               // not streamed
  double context_logits = 0;
  double oversized = 0;  // drawn without regard to the limits
};

// How workers fail. Chances; what hangs needs watchdog_ms to be found.
struct Faults {
  double death = 0;         // at every moment
  double hang = 0;          // of a step, and every one after it
  double garble = 0;        // of an answer, which is not what was asked for
  double failed_start = 0;  // of a start
  double deadly = 0;  // of a request, one of whose positions is never computed: the worker dies
                      // of it, or hangs
  int32_t max_deadly = 0;        // of them in all
  double non_finite = 0;         // of a request, whose logits after some position are not finite
  TimeNs max_restart = 5000000;  // a start takes up to this

  bool OnlyDeadlyKill() const { return death + hang + garble + failed_start == 0 && deadly > 0; }
};

// When the Executor is shut down: accepted requests run on until `patience` has passed.
struct Drain {
  TimeNs at = kNever;
  uint64_t at_failure = 0;  // while the worker is restarted after so many failures; 0 = never
  TimeNs patience = kNever;
};

// Everything that a simulation does follows from this.
struct Workload {
  uint64_t seed = 0;
  ExecutorConfig config;
  ScriptedWorkerConfig worker;
  TrafficShape traffic;
  Faults faults;
  Drain drain;
  int64_t num_requests = 0;
  TimeNs max_step = 1000000;   // a step takes up to this
  bool byte_fallback = false;  // how tokens become text; else by bytes alone
};

// Small and odd: pools from two blocks up, every option at its extremes.
Workload RandomWorkload(uint64_t seed);
// Fixed, without random faults, cancels and deadlines: for injection at every moment.
std::vector<Workload> SmallScenarios();
// A server near its capacity.
Workload ServerWorkload(uint64_t seed, int64_t num_requests);

// One line.
std::string Describe(const Workload& workload);

}  // namespace slipstream::simulation
