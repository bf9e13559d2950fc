// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "executor/event.h"
#include "triton/delivery.h"
#include "triton/llm_stream.h"

namespace slipstream::triton {

// Several Deliveries side by side: sending a response costs some 20 us, so one thread is at its
// limit with 50,000 a second. A stream stays with the lane that it began in, in its order.
class DeliveryLanes final : public EventSink {
 public:
  // One for every four processors, up to four.
  static size_t DefaultCount();
  explicit DeliveryLanes(size_t count = DefaultCount());

  void Start(const Delivery::Options& options);
  void Stop();  // see Delivery::Stop

  // See Delivery::Add; returns the stream's lane, which takes whatever else concerns it.
  Delivery& Add(const std::shared_ptr<LlmStream>& stream);
  void OnEvents(std::vector<Event>&& events) override;

  size_t num_live() const;

 private:
  std::vector<std::shared_ptr<Delivery>> lanes_;
  std::atomic<size_t> next_{0};
};

}  // namespace slipstream::triton
