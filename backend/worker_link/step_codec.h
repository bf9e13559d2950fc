// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "executor/status.h"
#include "executor/step.h"
#include "worker_link/step_frame.h"

namespace slipstream {

// The payload of a STEP frame, as pieces of memory to send one after the other. The pieces point
// into the plan and into the encoder: nothing is copied, both must stay as they are until the
// payload was sent.
class StepEncoder {
 public:
  const std::vector<iovec>& Encode(const StepPlan& plan);

 private:
  template <typename T>
  void Append(const std::vector<T>& values);

  StepHeader header_{};
  size_t size_ = 0;
  std::vector<iovec> parts_;
};

// What must be known of a plan to judge the answer to it.
struct SentStep {
  uint64_t step_id = 0;
  std::vector<uint32_t> slots;
};

// Reads the payload of a RESULT frame that answers `step`. Every count is checked against the
// payload's size and the plan; kInternal says what does not fit. Reuses the capacity of *result.
Status DecodeResult(const uint8_t* payload, size_t size, const SentStep& step, StepResult* result);

}  // namespace slipstream
