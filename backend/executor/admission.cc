// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/admission.h"

#include <string>

namespace slipstream {
namespace {

Status CheckBound(int64_t waiting, int64_t more, const char* unit, const char* option,
                  int64_t limit) {
  if (limit <= 0 || more <= limit - waiting) return Status::Ok();
  return Status::Unavailable("the queue is full: " + std::to_string(waiting) + " " + unit +
                             " wait, " + std::to_string(more) + " more would exceed " + option +
                             " = " + std::to_string(limit));
}

}  // namespace

QueueLoad Displaceable(const ClassLoads& fresh, int32_t priority) {
  QueueLoad sum;
  for (auto c = static_cast<size_t>(priority) + 1; c < fresh.size(); ++c) sum = sum + fresh[c];
  return sum;
}

Status CheckQueue(const ExecutorConfig& config, QueueLoad waiting, QueueLoad more) {
  if (Status s = CheckBound(waiting.sequences, more.sequences, "sequences", "max_queue_requests",
                            config.max_queue_requests);
      !s.ok()) {
    return s;
  }
  return CheckBound(waiting.tokens, more.tokens, "prompt tokens", "max_queue_tokens",
                    config.max_queue_tokens);
}

}  // namespace slipstream
