// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/delivery_lanes.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace slipstream::triton {

size_t DeliveryLanes::DefaultCount() {
  return std::clamp<size_t>(std::thread::hardware_concurrency() / 4, 1, 4);
}

DeliveryLanes::DeliveryLanes(size_t count) {
  for (size_t i = 0; i < count; ++i) lanes_.push_back(Delivery::Create());
}

void DeliveryLanes::Start(const Delivery::Options& options) {
  for (const auto& lane : lanes_) lane->Start(options);
}

void DeliveryLanes::Stop() {
  for (const auto& lane : lanes_) lane->Stop();
}

Delivery& DeliveryLanes::Add(const std::shared_ptr<LlmStream>& stream) {
  stream->lane = next_++ % lanes_.size();
  Delivery& lane = *lanes_[stream->lane];
  lane.Add(stream);
  return lane;
}

void DeliveryLanes::OnEvents(std::vector<Event>&& events) {
  if (lanes_.size() == 1) {
    lanes_[0]->OnEvents(std::move(events));
    return;
  }
  std::vector<std::vector<Event>> parts(lanes_.size());
  for (Event& event : events) {
    // Every request of this sink was submitted with such a context.
    const size_t lane = static_cast<const LlmContext&>(*event.context).stream->lane;
    parts[lane].push_back(std::move(event));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].empty()) lanes_[i]->OnEvents(std::move(parts[i]));
  }
}

size_t DeliveryLanes::num_live() const {
  size_t total = 0;
  for (const auto& lane : lanes_) total += lane->num_live();
  return total;
}

}  // namespace slipstream::triton
