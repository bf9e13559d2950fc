// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/simulation.h"

#include "doctest/doctest.h"
#include "simulation/injection.h"

namespace slipstream::simulation {

TEST_CASE("simulation: random workloads hold every invariant") {
  uint64_t steps = 0, preemptions = 0, deaths = 0, hits = 0;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    const Workload workload = RandomWorkload(seed);
    Simulation simulation(workload, {});
    REQUIRE_MESSAGE(simulation.Run() == "", "slipstream_simulate --replay ", seed, ": ",
                    Describe(workload));
    steps += simulation.tally().steps;
    preemptions += simulation.tally().preemptions;
    deaths += simulation.tally().deaths;
    hits += simulation.tally().hit_tokens;
  }
  // They reach what they are there to reach.
  CHECK(steps > 10000);
  CHECK(preemptions > 100);
  CHECK(deaths > 100);
  CHECK(hits > 1000);
}

TEST_CASE("simulation: a server near its capacity") {
  Simulation simulation(ServerWorkload(1, 2000), {});
  CHECK(simulation.Run() == "");
  CHECK(simulation.ledger().finished(FinishReason::kDeadline) > 0);
  CHECK(simulation.ledger().finished(FinishReason::kCancelled) > 0);
}

TEST_CASE("simulation: a cancel, a deadline and a death at every moment") {
  for (const Workload& workload : SmallScenarios()) {
    const InjectionReport report = InjectEverywhere(workload);
    CHECK_MESSAGE(report.broken == "", "slipstream_simulate --inject, scenario ", workload.seed);
    CHECK(report.runs > report.moments);
  }
}

}  // namespace slipstream::simulation
