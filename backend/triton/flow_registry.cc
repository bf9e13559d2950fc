// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/flow_registry.h"

#include <cstring>
#include <utility>

#include "executor/block_hash.h"

namespace slipstream::triton {

std::string FlowKey(uint64_t handle) {
  return std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
}

std::optional<uint64_t> ParseFlowKey(std::string_view key) {
  uint64_t handle = 0;
  if (key.size() != sizeof(handle)) return std::nullopt;
  std::memcpy(&handle, key.data(), sizeof(handle));
  return handle;
}

FlowRegistry& FlowRegistry::Instance() {
  static FlowRegistry registry;
  return registry;
}

uint64_t FlowRegistry::Register(std::weak_ptr<FlowListener> listener) {
  for (;;) {
    const uint64_t handle = RandomSeed();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (handle != 0 && listeners_.emplace(handle, listener).second) return handle;
  }
}

void FlowRegistry::Unregister(uint64_t handle) {
  const std::lock_guard<std::mutex> lock(mutex_);
  listeners_.erase(handle);
}

std::shared_ptr<FlowListener> FlowRegistry::Find(uint64_t handle) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto entry = listeners_.find(handle);
  return entry == listeners_.end() ? nullptr : entry->second.lock();
}

size_t FlowRegistry::size() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return listeners_.size();
}

}  // namespace slipstream::triton
