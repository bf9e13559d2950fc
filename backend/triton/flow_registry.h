// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace slipstream::triton {

// The sending end of a stream, as its later steps in an ensemble see it. Any thread.
class FlowListener {
 public:
  virtual ~FlowListener() = default;
  virtual void OnAcknowledged() = 0;  // one more of its responses was passed on
  virtual void OnCancelled() = 0;     // the client is gone
};

// A handle as it travels: its 8 bytes.
std::string FlowKey(uint64_t handle);
std::optional<uint64_t> ParseFlowKey(std::string_view key);  // nullopt: not 8 bytes

// Connects the roles of one process. Triton tells only the later steps of an ensemble that the
// client has gone, and gives its first step no back-pressure at all; so every response of role
// `llm` in an ensemble carries a handle to its stream, and role `detokenize` reports back through
// it.
//
// Handles are 64 random bits: a client cannot guess one that is not its own.
class FlowRegistry {
 public:
  static FlowRegistry& Instance();  // roles are separate models: the process is all they share

  uint64_t Register(std::weak_ptr<FlowListener> listener);
  void Unregister(uint64_t handle);
  // nullptr when the stream has ended, or never was.
  std::shared_ptr<FlowListener> Find(uint64_t handle) const;
  size_t size() const;

 private:
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, std::weak_ptr<FlowListener>> listeners_;  // guarded by mutex_
};

}  // namespace slipstream::triton
