// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "fuzz_target.h"

#include <cstdio>
#include <cstdlib>

#include "targets.h"

namespace slipstream::fuzz {

const std::vector<FuzzTarget>& FuzzTargets() {
  static const std::vector<FuzzTarget> targets = {
      WordListTarget(),      ChannelTarget(),        StepResultTarget(),  WorkerMapsTarget(),
      TokenizerMapsTarget(), TokenTableTarget(),     StopStringsTarget(), ParametersTarget(),
      ModelConfigTarget(),   ScriptedConfigTarget(), LlmRequestTarget(),  PipelineRequestTarget(),
      BackendTarget()};
  return targets;
}

const FuzzTarget* FindTarget(std::string_view name) {
  for (const FuzzTarget& target : FuzzTargets()) {
    if (name == target.name) return &target;
  }
  return nullptr;
}

void Require(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}

}  // namespace slipstream::fuzz
