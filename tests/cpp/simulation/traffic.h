// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "executor/request.h"
#include "simulation/dice.h"
#include "simulation/script.h"
#include "simulation/workload.h"

namespace slipstream::simulation {

struct Arrival {
  TimeNs at = 0;
  RequestSpec spec;
  int32_t cancel_after = -1;         // moments after its arrival; -1 = never
  bool stop_client = false;          // not it alone, but all with its client id are cancelled
  int32_t deadly_position = -1;      // the worker dies of it; -1 = of none
  int32_t non_finite_position = -1;  // the logits after it are not finite; -1 = none
};

// Draws the requests of a workload one by one. Holds no more than a few of them.
class Traffic {
 public:
  // `script` must outlive it.
  Traffic(const Workload& workload, const RequestLimits& limits, const Script* script);

  // Times never go back.
  Arrival Next();

 private:
  std::vector<int32_t> DrawPrompt();
  std::vector<int32_t> DrawTokens(int32_t count, int32_t vocab_size);
  void FitLength(RequestSpec* spec);
  void DrawStops(RequestSpec* spec);
  void DrawText(RequestSpec* spec);
  void DrawPayload(RequestSpec* spec);
  void DrawFaults(Arrival* arrival);
  void DrawRetention(RequestSpec* spec);

  const TrafficShape shape_;
  const Faults faults_;
  const RequestLimits limits_;
  const Script* const script_;
  const uint64_t seed_;
  Dice dice_;
  std::vector<std::vector<int32_t>> prefixes_;
  std::deque<std::vector<int32_t>> conversations_;  // the last prompts with their answers
  TimeNs at_ = 1;
  uint64_t drawn_ = 0;
  int32_t deadly_ = 0;
};

}  // namespace slipstream::simulation
