// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "executor/event.h"
#include "triton/flow_registry.h"
#include "triton/llm_stream.h"

namespace slipstream::triton {

// Carries events from the executor to the clients, on a thread of its own: sending runs Triton's
// response callback, which can block, and the executor must not wait for it.
//
// What is not sent yet is merged per sequence, so a slow client costs no more memory than its
// tokens. In an ensemble with a `detokenize` step that acknowledges, at most `flow_window`
// responses of a stream are on their way; what comes meanwhile is merged into the next one. A
// window that stays full for kStallNs is taken as lost acknowledgements and opened; the last
// response of a stream never waits, unless it is an error: that comes when all before it is
// acknowledged.
//
// The thread also looks for clients that went away, every `poll_period_ms` and before every
// response, and cancels what they had asked for.
class Delivery final : public EventSink, public std::enable_shared_from_this<Delivery> {
 public:
  struct Options {
    int32_t poll_period_ms = 25;
    int32_t flow_window = 32;
    std::function<void(RequestHandle)> cancel;  // any thread; must not call back
  };
  static constexpr TimeNs kStallNs = 1'000'000'000;

  static std::shared_ptr<Delivery> Create();
  ~Delivery() override;  // Stop() must have been called if Start() was
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  // Events before Start() are kept.
  void Start(Options options);
  // Sends what is pending, then ends. Streams that are still live end with an error.
  void Stop();

  // Makes the stream known, before its first row is submitted; gives it a flow handle if it is
  // piped.
  void Add(const std::shared_ptr<LlmStream>& stream);
  // Row `row` was accepted as `handle`.
  void SetHandle(const std::shared_ptr<LlmStream>& stream, int32_t row, RequestHandle handle);
  // Row `row` was refused: its only event is this error.
  void Fail(const std::shared_ptr<LlmStream>& stream, int32_t row, Status error);
  void OnEvents(std::vector<Event>&& events) override;

  void Acknowledge(const std::shared_ptr<LlmStream>& stream);
  void Cancel(const std::shared_ptr<LlmStream>& stream);

  size_t num_live() const;

 private:
  Delivery() = default;
  void Run();
  void Deliver(const std::shared_ptr<LlmStream>& stream);
  void SendOutputs(LlmStream* stream, int32_t row, Event&& event, bool final);
  void SendItem(LlmStream* stream, LlmStream::Pending&& item, bool final);
  void SendGone(LlmStream* stream, LlmStream::Pending&& item, bool final);
  void SendStopped(LlmStream* stream, LlmStream::Pending&& item, bool final);
  void Poll(TimeNs now);
  void End(const std::shared_ptr<LlmStream>& stream);
  void EndAll();
  // These need mutex_.
  void Merge(const std::shared_ptr<LlmStream>& stream, int32_t row, Event&& event);
  void Queue(const std::shared_ptr<LlmStream>& stream);
  void HoldErrors(LlmStream* stream);
  bool WindowIsFull(const LlmStream& stream) const;
  std::vector<RequestHandle> MarkCancelled(LlmStream* stream);

  void CancelAll(const std::vector<RequestHandle>& handles);

  Options options_;  // constant after Start
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<LlmStream>> queue_;  // guarded by mutex_
  std::vector<std::shared_ptr<LlmStream>> live_;   // guarded by mutex_
  bool stopping_ = false;                          // guarded by mutex_
  std::thread thread_;
};

}  // namespace slipstream::triton
