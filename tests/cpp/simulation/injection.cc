// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/injection.h"

#include <algorithm>

#include "simulation/simulation.h"

namespace slipstream::simulation {
namespace {

using Outcomes = std::map<SequenceKey, Ledger::Outcome>;

std::string Name(const Injection& injection) {
  const std::string at = " at moment " + std::to_string(injection.moment);
  if (injection.kind == Injection::Kind::kDeath) return "a death" + at;
  const char* what = injection.kind == Injection::Kind::kCancel ? "a cancel" : "a deadline";
  return what + (" of request " + std::to_string(injection.request)) + at;
}

// `struck`: 0 = nobody.
std::string Compare(const Outcomes& undisturbed, const Outcomes& got, RequestId struck) {
  if (got.size() != undisturbed.size()) return "the number of sequences differs";
  for (const auto& [key, before] : undisturbed) {
    const Ledger::Outcome& now = got.at(key);
    const bool same = now.tokens == before.tokens && now.reason == before.reason;
    const bool part = now.tokens.size() <= before.tokens.size() &&
                      std::equal(now.tokens.begin(), now.tokens.end(), before.tokens.begin());
    if (key.first == struck ? !part : !same) {
      return "request " + std::to_string(key.first) + " got something else than undisturbed";
    }
  }
  return "";
}

}  // namespace

InjectionReport InjectEverywhere(const Workload& workload) {
  Simulation calm(workload, {{}, /*keep_outcomes=*/true, {}});
  InjectionReport report;
  report.broken = calm.Run();
  if (!report.broken.empty()) return report;
  const auto run = [&](const Injection& injection) {
    Simulation disturbed(workload, {injection, /*keep_outcomes=*/true, {}});
    std::string broken = disturbed.Run();
    ++report.runs;
    if (broken.empty()) {
      broken = Compare(calm.ledger().outcomes(), disturbed.ledger().outcomes(), injection.request);
    }
    if (!broken.empty()) report.broken = Name(injection) + ": " + broken;
    return broken.empty();
  };
  report.moments = static_cast<int64_t>(calm.moments().size());
  for (int64_t moment = 1; moment <= report.moments; ++moment) {
    const TimeNs at = calm.moments()[moment - 1];
    if (!run({Injection::Kind::kDeath, moment, at, 0})) return report;
    for (const auto& [id, arrived] : calm.arrived_at()) {
      if (arrived >= moment) continue;
      if (!run({Injection::Kind::kCancel, moment, at, id})) return report;
      if (!run({Injection::Kind::kDeadline, moment, at, id})) return report;
    }
  }
  return report;
}

}  // namespace slipstream::simulation
