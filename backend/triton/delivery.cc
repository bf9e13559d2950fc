// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/delivery.h"

#include <algorithm>
#include <chrono>

#include "triton/response_builder.h"

namespace slipstream::triton {
namespace {

TimeNs Now() { return static_cast<TimeNs>(MonotonicNs()); }

// Hands what `detokenize` reports to the stream; keeps neither it nor Delivery alive.
class Flow final : public FlowListener {
 public:
  Flow(std::weak_ptr<Delivery> delivery, std::weak_ptr<LlmStream> stream)
      : delivery_(std::move(delivery)), stream_(std::move(stream)) {}
  void OnAcknowledged() override {
    const auto delivery = delivery_.lock();
    const auto stream = stream_.lock();
    if (delivery && stream) delivery->Acknowledge(stream);
  }
  void OnCancelled() override {
    const auto delivery = delivery_.lock();
    const auto stream = stream_.lock();
    if (delivery && stream) delivery->Cancel(stream);
  }

 private:
  const std::weak_ptr<Delivery> delivery_;
  const std::weak_ptr<LlmStream> stream_;
};

bool HasOutput(const Event& event) { return !event.tokens.empty() || !event.text.empty(); }

bool IsError(const Event& event) {
  return event.reason == FinishReason::kDeadline || event.reason == FinishReason::kError ||
         (event.reason == FinishReason::kCancelled &&
          event.error.code() == StatusCode::kUnavailable);
}

Status ErrorOf(const Event& event) {
  return event.error.ok() ? Status::Internal("the request failed") : event.error;
}

}  // namespace

std::shared_ptr<Delivery> Delivery::Create() { return std::shared_ptr<Delivery>(new Delivery()); }

Delivery::~Delivery() = default;

void Delivery::Start(Options options) {
  options_ = std::move(options);
  thread_ = std::thread([this] { Run(); });
}

void Delivery::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

size_t Delivery::num_live() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return live_.size();
}

void Delivery::Add(const std::shared_ptr<LlmStream>& stream) {
  if (stream->plan.piped) {
    stream->flow = std::make_shared<Flow>(weak_from_this(), stream);
    stream->plan.flow = FlowRegistry::Instance().Register(stream->flow);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  stream->live_index = live_.size();
  live_.push_back(stream);
}

void Delivery::SetHandle(const std::shared_ptr<LlmStream>& stream, int32_t row,
                         RequestHandle handle) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stream->rows[static_cast<size_t>(row)] = {handle, true};
    if (!stream->cancelled) return;
  }
  options_.cancel(handle);  // the client went away before the handle was known
}

void Delivery::Fail(const std::shared_ptr<LlmStream>& stream, int32_t row, Status error) {
  Event event;
  event.reason = FinishReason::kError;
  event.request_done = true;
  event.error = std::move(error);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Merge(stream, row, std::move(event));
  }
  wake_.notify_one();
}

void Delivery::OnEvents(std::vector<Event>&& events) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Event& event : events) {
      // Every request of this sink was submitted with such a context.
      const auto context = std::static_pointer_cast<LlmContext>(std::move(event.context));
      Merge(context->stream, context->row, std::move(event));
    }
  }
  wake_.notify_one();
}

void Delivery::Merge(const std::shared_ptr<LlmStream>& stream, int32_t row, Event&& event) {
  if (event.request_done) --stream->rows_left;
  const auto same = std::find_if(
      stream->pending.begin(), stream->pending.end(), [&](const LlmStream::Pending& item) {
        return item.row == row && item.event.sequence_index == event.sequence_index;
      });
  if (same == stream->pending.end()) {
    stream->pending.push_back({row, std::move(event)});
  } else {
    MergeEvent(std::move(event), &same->event);
  }
  Queue(stream);
}

void Delivery::Queue(const std::shared_ptr<LlmStream>& stream) {
  // A stalled stream waits for an acknowledgement, unless this was its last event.
  if (stream->queued || (stream->stalled && stream->rows_left > 0)) return;
  stream->queued = true;
  stream->stalled = false;
  queue_.push_back(stream);
}

bool Delivery::WindowIsFull(const LlmStream& stream) const {
  return stream.acknowledged > 0 &&
         stream.sent >= stream.acknowledged + static_cast<uint64_t>(options_.flow_window);
}

void Delivery::Acknowledge(const std::shared_ptr<LlmStream>& stream) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++stream->acknowledged;
    if (!stream->stalled) return;
    stream->stalled = false;
    Queue(stream);
  }
  wake_.notify_one();
}

void Delivery::Cancel(const std::shared_ptr<LlmStream>& stream) {
  std::vector<RequestHandle> handles;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    handles = MarkCancelled(stream.get());
  }
  CancelAll(handles);
}

std::vector<RequestHandle> Delivery::MarkCancelled(LlmStream* stream) {
  std::vector<RequestHandle> handles;
  if (stream->cancelled || stream->ended) return handles;
  stream->cancelled = true;
  for (const LlmStream::Row& row : stream->rows) {
    if (row.accepted) handles.push_back(row.handle);
  }
  return handles;
}

void Delivery::CancelAll(const std::vector<RequestHandle>& handles) {
  for (const RequestHandle handle : handles) options_.cancel(handle);
}

void Delivery::Run() {
  const TimeNs period = TimeNs{options_.poll_period_ms} * 1'000'000;
  TimeNs next_poll = Now() + period;
  std::vector<std::shared_ptr<LlmStream>> batch;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto due = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(next_poll));
      wake_.wait_until(lock, due, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_ && queue_.empty()) break;
      batch.swap(queue_);
    }
    for (const auto& stream : batch) Deliver(stream);
    batch.clear();
    if (const TimeNs now = Now(); now >= next_poll) {
      Poll(now);
      next_poll = now + period;
    }
  }
  EndAll();
}

void Delivery::Deliver(const std::shared_ptr<LlmStream>& stream) {
  const bool gone = stream->channel->cancelled();
  std::vector<LlmStream::Pending> items;
  std::vector<RequestHandle> handles;
  Status error;
  bool last = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stream->queued = false;
    if (gone) handles = MarkCancelled(stream.get());
    if (stream->plan.piped) HoldErrors(stream.get());
    last = stream->rows_left == 0;
    bool waits = !last && WindowIsFull(*stream);
    if (!waits) {
      items.swap(stream->pending);
      stream->sent += items.size();
      error = stream->error;
      waits = last && !error.ok() && stream->acknowledged < stream->sent;
    }
    if (waits) {
      stream->stalled = true;
      stream->stalled_since = Now();
      last = false;
    }
  }
  CancelAll(handles);
  for (size_t i = 0; i < items.size(); ++i) {
    SendItem(stream.get(), std::move(items[i]), last && error.ok() && i + 1 == items.size());
  }
  if (!last) return;
  if (!error.ok()) stream->channel->SendError(error, true);
  End(stream);
}

// tritonserver 2.51 never ends an ensemble one of whose steps fails while another one runs, and
// then cannot shut down. So an ensemble gets one error, as the last response and when every
// response before it was acknowledged.
void Delivery::HoldErrors(LlmStream* stream) {
  std::vector<LlmStream::Pending> kept;
  for (LlmStream::Pending& item : stream->pending) {
    Event& event = item.event;
    if (IsError(event)) {
      if (stream->error.ok()) stream->error = ErrorOf(event);
      if (!stream->plan.streaming || !HasOutput(event)) continue;
      event.reason = FinishReason::kNone;  // what was generated before
    }
    kept.push_back(std::move(item));
  }
  stream->pending = std::move(kept);
}

void Delivery::SendOutputs(LlmStream* stream, int32_t row, Event&& event, bool final) {
  if (stream->plan.accumulate_text) event.text = stream->WholeText(row, event);
  stream->channel->Send(BuildOutputs(stream->plan, row, std::move(event)), final);
}

void Delivery::SendItem(LlmStream* stream, LlmStream::Pending&& item, bool final) {
  Event& event = item.event;
  const bool gone = stream->channel->cancelled();
  if (gone && event.reason == FinishReason::kNone && !final) {
    stream->skipped = true;  // nobody reads it
    return;
  }
  switch (event.reason) {
    case FinishReason::kCancelled:
      SendStopped(stream, std::move(item), final);
      return;
    case FinishReason::kDeadline:
    case FinishReason::kError: {
      const Status error = ErrorOf(event);
      if (stream->plan.streaming && HasOutput(event)) {  // what was generated before
        event.reason = FinishReason::kNone;
        SendOutputs(stream, item.row, std::move(event), false);
      }
      stream->channel->SendError(error, final);
      return;
    }
    default:
      if (stream->skipped) {
        SendGone(stream, std::move(item), final);
        return;
      }
      SendOutputs(stream, item.row, std::move(event), final);
  }
}

// The end for a client that went away: never a success that lacks what was skipped.
void Delivery::SendGone(LlmStream* stream, LlmStream::Pending&& item, bool final) {
  if (!stream->plan.piped) {
    stream->channel->SendError(Status::Cancelled("the request was cancelled"), final);
    return;
  }
  item.event.reason = FinishReason::kCancelled;  // no error: see HoldErrors
  stream->channel->Send(BuildStoppedOutputs(stream->plan, item.row, std::move(item.event)), final);
}

// A cancelled sequence: because the client is gone, because the model shuts down, or because a stop
// request named it. The last is a success without output.
void Delivery::SendStopped(LlmStream* stream, LlmStream::Pending&& item, bool final) {
  Event& event = item.event;
  if (event.error.code() == StatusCode::kUnavailable) {
    stream->channel->SendError(event.error, final);
    return;
  }
  bool gone = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone = stream->cancelled;
  }
  if (gone) {
    SendGone(stream, std::move(item), final);
    return;
  }
  if (stream->plan.streaming && HasOutput(event)) {
    Event data = event;
    data.reason = FinishReason::kNone;
    SendOutputs(stream, item.row, std::move(data), false);
  }
  event.text.clear();
  if (stream->plan.accumulate_text) event.text = stream->WholeText(item.row, event);
  stream->channel->Send(BuildStoppedOutputs(stream->plan, item.row, std::move(event)), final);
}

void Delivery::Poll(TimeNs now) {
  std::vector<RequestHandle> handles;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& stream : live_) {
      if (stream->channel->cancelled()) {
        const auto more = MarkCancelled(stream.get());
        handles.insert(handles.end(), more.begin(), more.end());
      }
      if (stream->stalled && now - stream->stalled_since >= kStallNs) {
        stream->acknowledged = stream->sent;  // the acknowledgements are lost
        stream->stalled = false;
        Queue(stream);
      }
    }
  }
  CancelAll(handles);
}

void Delivery::End(const std::shared_ptr<LlmStream>& stream) {
  if (stream->plan.piped) FlowRegistry::Instance().Unregister(stream->plan.flow);
  const std::lock_guard<std::mutex> lock(mutex_);
  stream->ended = true;
  live_.back()->live_index = stream->live_index;
  std::swap(live_[stream->live_index], live_.back());
  live_.pop_back();
}

void Delivery::EndAll() {
  std::vector<std::shared_ptr<LlmStream>> rest;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    rest = live_;
  }
  for (const auto& stream : rest) {
    stream->channel->SendError(Status::Unavailable("the model is shutting down"), true);
    End(stream);
  }
}

}  // namespace slipstream::triton
