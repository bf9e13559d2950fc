// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "simulation/injection.h"

#include <algorithm>

#include "simulation/simulation.h"

namespace slipstream::simulation {
namespace {

using Outcomes = std::map<SequenceKey, Ledger::Outcome>;

using Kind = Injection::Kind;

const char* What(Kind kind) {
  switch (kind) {
    case Kind::kCancel:
      return "a cancel";
    case Kind::kDeadline:
      return "a deadline";
    case Kind::kDeadly:
      return "deadliness";
    case Kind::kDeath:
      return "a death";
    case Kind::kDeathAndCancel:
      return "a death and a cancel";
    case Kind::kDeathAndDrain:
      return "a death and a drain";
    case Kind::kDeathAndStop:
      return "a death and a shutdown";
    case Kind::kHang:
      return "a hang";
    case Kind::kGiveUp:
      return "a death for good";
    case Kind::kDrain:
      return "a drain";
    case Kind::kStop:
      return "a shutdown";
  }
  return "";
}

std::string Name(const Injection& injection) {
  const std::string at = " at moment " + std::to_string(injection.moment);
  if (injection.request == 0) return What(injection.kind) + at;
  return What(injection.kind) + (" of request " + std::to_string(injection.request)) + at;
}

template <typename T>
bool BeginsWith(const T& whole, const T& part) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
}

// Text that waited for its end may show at the end of a part, be it of a character.
bool IsPart(const Ledger::Outcome& part, const Ledger::Outcome& whole) {
  return BeginsWith(whole.tokens, part.tokens) && BeginsWith(whole.logprobs, part.logprobs);
}

bool IsSame(const Ledger::Outcome& a, const Ledger::Outcome& b) {
  return a.tokens == b.tokens && a.text == b.text && a.logprobs == b.logprobs &&
         a.reason == b.reason && a.stop_reason == b.stop_reason;
}

// Who is struck gets a part of what it would have got, all others the same. Those that come after a
// shutdown get nothing.
std::string Compare(const Simulation& calm, const Simulation& disturbed, const Injection& in) {
  const Outcomes& got = disturbed.ledger().outcomes();
  const Kind kind = in.kind;
  const bool all = kind == Kind::kStop || kind == Kind::kDeathAndStop || kind == Kind::kGiveUp;
  const bool shut = all || kind == Kind::kDrain || kind == Kind::kDeathAndDrain;
  for (const auto& [key, before] : calm.ledger().outcomes()) {
    const std::string name = "request " + std::to_string(key.first);
    const auto it = got.find(key);
    if (it == got.end()) {
      if (shut && calm.arrived_at().at(key.first) >= in.moment) continue;
      return name + " got nothing";
    }
    if (all || key.first == in.request ? !IsPart(it->second, before)
                                       : !IsSame(it->second, before)) {
      return name + " got something else than undisturbed";
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
    if (broken.empty()) broken = Compare(calm, disturbed, injection);
    if (!broken.empty()) report.broken = Name(injection) + ": " + broken;
    return broken.empty();
  };
  report.moments = static_cast<int64_t>(calm.moments().size());
  for (int64_t moment = 1; moment <= report.moments; ++moment) {
    const TimeNs at = calm.moments()[moment - 1];
    for (const Kind kind : {Kind::kDeath, Kind::kHang, Kind::kGiveUp, Kind::kDrain, Kind::kStop,
                            Kind::kDeathAndDrain, Kind::kDeathAndStop}) {
      if (!run({kind, moment, at, 0})) return report;
    }
    for (const auto& [id, arrived] : calm.arrived_at()) {
      if (arrived >= moment) continue;
      for (const Kind kind :
           {Kind::kCancel, Kind::kDeadline, Kind::kDeadly, Kind::kDeathAndCancel}) {
        if (!run({kind, moment, at, id})) return report;
      }
    }
  }
  return report;
}

}  // namespace slipstream::simulation
