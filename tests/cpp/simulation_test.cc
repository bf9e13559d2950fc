// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/simulation.h"

#include "doctest/doctest.h"
#include "simulation/injection.h"

namespace slipstream::simulation {

TEST_CASE("simulation: random workloads hold every invariant") {
  Simulation::Tally sum;
  uint64_t text = 0, stops = 0;
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    const Workload workload = RandomWorkload(seed);
    Simulation simulation(workload, {});
    REQUIRE_MESSAGE(simulation.Run() == "", "slipstream_simulate --replay ", seed, ": ",
                    Describe(workload));
    const Simulation::Tally& tally = simulation.tally();
    sum.steps += tally.steps;
    sum.preemptions += tally.preemptions;
    sum.hit_tokens += tally.hit_tokens;
    sum.failures += tally.failures;
    sum.hangs += tally.hangs;
    sum.give_ups += tally.give_ups;
    sum.drains_recovering += tally.drains_recovering;
    text += simulation.ledger().delivered_bytes();
    stops += simulation.ledger().finished(FinishReason::kStopSequence);
  }
  // They reach what they are there to reach.
  CHECK(sum.steps > 10000);
  CHECK(sum.preemptions > 100);
  CHECK(sum.hit_tokens > 1000);
  CHECK(sum.failures > 500);
  CHECK(sum.hangs > 50);
  CHECK(sum.give_ups > 20);
  CHECK(sum.drains_recovering > 10);
  CHECK(text > 10000);
  CHECK(stops > 500);
}

TEST_CASE("simulation: a server near its capacity") {
  Simulation simulation(ServerWorkload(1, 2000), {});
  CHECK(simulation.Run() == "");
  CHECK(simulation.ledger().finished(FinishReason::kDeadline) > 0);
  CHECK(simulation.ledger().finished(FinishReason::kCancelled) > 0);
}

TEST_CASE("simulation: every disturbance at every moment") {
  uint64_t preemptions = 0, text = 0;
  for (const Workload& workload : SmallScenarios()) {
    Simulation calm(workload, {});
    CHECK(calm.Run() == "");
    preemptions += calm.tally().preemptions;
    text += calm.ledger().delivered_bytes();
    const InjectionReport report = InjectEverywhere(workload);
    CHECK_MESSAGE(report.broken == "", "slipstream_simulate --inject, scenario ", workload.seed);
    CHECK(report.runs > report.moments);
  }
  CHECK(preemptions > 10);
  CHECK(text > 500);
}

}  // namespace slipstream::simulation
