// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/executor_metrics.h"

#include <algorithm>
#include <utility>

#include "executor/event.h"
#include "executor/step.h"

namespace slipstream {

Histogram::Histogram(std::vector<double> upper_bounds)
    : bounds(std::move(upper_bounds)), counts(bounds.size() + 1, 0) {}

void Histogram::Observe(double value) {
  const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin();
  ++counts[static_cast<size_t>(bucket)];
  sum += value;
  ++count;
}

void InitHistograms(MetricsSnapshot* m) {
  m->time_to_first_token_s =
      Histogram({0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60});
  m->inter_token_latency_s =
      Histogram({0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5});
  m->queue_time_s = Histogram({0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60});
  m->e2e_latency_s = Histogram({0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300});
  m->input_tokens = Histogram({10, 50, 100, 500, 1000});
  m->output_tokens = Histogram({10, 50, 100, 500, 1000});
}

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kStopSequence:
      return "stop_sequence";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "";
}

void StepPlan::Clear() {
  slot.clear();
  num_tokens.clear();
  first_position.clear();
  num_new_blocks.clear();
  flags.clear();
  token_ids.clear();
  new_block_ids.clear();
  copies.clear();
  admitted.clear();
  retired.clear();
  aux.clear();
}

}  // namespace slipstream
