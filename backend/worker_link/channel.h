// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "executor/status.h"
#include "worker_link/step_frame.h"
#include "worker_link/unique_fd.h"

namespace slipstream {

// A received frame. The payload lies in the channel's buffer until the channel's next call.
struct Frame {
  FrameType type = FrameType::kError;
  const uint8_t* payload = nullptr;
  size_t size = 0;
};

// The payload of a msgpack frame; kInternal unless it is exactly one map, of at most kMaxJsonDepth
// levels.
StatusOr<nlohmann::json> ParseMap(const Frame& frame);

// Frames over one connected stream socket. Used by one thread at a time.
//
// A Status other than ok means that the connection is of no further use: the peer is gone
// (kUnavailable), does not take bytes (kDeadlineExceeded) or sends garbage (kInternal). SIGPIPE is
// never raised.
class Channel {
 public:
  enum class Next {
    kFrame,  // *frame is filled
    kNone,   // no whole frame has arrived yet
    kEnd,    // the peer closed the connection, and not inside a frame
  };

  // Payloads above `max_payload` are an error; memory grows with the bytes that arrive, never with
  // the size that a header announces.
  explicit Channel(UniqueFd fd, uint64_t max_payload = kMaxFramePayload);

  int fd() const { return fd_.get(); }
  // Bytes were received that no Read has returned yet; poll() on fd() does not tell.
  bool has_buffered() const { return begin_ != end_; }

  // Sends one frame whose payload is `parts` joined. Blocks until the socket took everything, at
  // most `timeout_ms`. Bytes that arrive meanwhile are buffered, so that two sides that both write
  // large frames never wait for each other.
  Status Write(FrameType type, const std::vector<iovec>& parts, int64_t timeout_ms);
  Status WriteMap(FrameType type, const nlohmann::json& map, int64_t timeout_ms);

  // The next frame that has arrived. Never blocks.
  StatusOr<Next> Read(Frame* frame);

  // Like Read, but waits for a frame until `deadline_ns` (CLOCK_MONOTONIC): kDeadlineExceeded
  // then, kCancelled when `interrupt_fd` (-1: none) becomes readable.
  StatusOr<Next> WaitRead(Frame* frame, int64_t deadline_ns, int interrupt_fd);

 private:
  StatusOr<bool> Parse(Frame* frame);
  Status Fill();
  void MakeRoom();
  Status WaitWritable(int64_t deadline_ns);

  UniqueFd fd_;
  const uint64_t max_payload_;
  std::vector<uint8_t> buffer_;
  size_t begin_ = 0;  // unread bytes are buffer_[begin_, end_)
  size_t end_ = 0;
  bool ended_ = false;
};

// CLOCK_MONOTONIC.
int64_t MonotonicNs();
inline int64_t DeadlineNs(int64_t timeout_ms) { return MonotonicNs() + timeout_ms * 1000000; }

}  // namespace slipstream
