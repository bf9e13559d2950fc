// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string>

#include "worker_link/bounded_json.h"

namespace slipstream {
namespace {

constexpr size_t kFirstBuffer = size_t{64} << 10;
constexpr size_t kKeptBuffer = size_t{16} << 20;  // a larger one is given back when it is empty

std::string Errno(int error) { return std::strerror(error); }

Status Gone() { return Status::Unavailable("the peer closed the connection"); }

// Rounded up, so that a poll never spins through the last millisecond.
int PollTimeout(int64_t deadline_ns) {
  const int64_t left_ms = (deadline_ns - MonotonicNs() + 999999) / 1000000;
  return static_cast<int>(std::clamp<int64_t>(left_ms, 0, INT_MAX));
}

// Drops the first `sent` bytes of parts[*first...].
void Advance(size_t sent, std::vector<iovec>* parts, size_t* first) {
  while (*first < parts->size() && sent >= (*parts)[*first].iov_len) {
    sent -= (*parts)[*first].iov_len;
    ++*first;
  }
  if (sent == 0) return;
  iovec& part = (*parts)[*first];
  part.iov_base = static_cast<char*>(part.iov_base) + sent;
  part.iov_len -= sent;
}

}  // namespace

int64_t MonotonicNs() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

StatusOr<nlohmann::json> ParseMap(const Frame& frame) {
  auto map = ParseMsgpack(frame.payload, frame.size);
  if (map.ok() && map->is_object()) return map;
  std::string what = map.ok() ? "is not one map" : map.status().message();
  return Status::Internal("the payload of a frame of type " +
                          std::to_string(static_cast<int>(frame.type)) + " " + what);
}

Channel::Channel(UniqueFd fd, uint64_t max_payload)
    : fd_(std::move(fd)), max_payload_(max_payload) {}

Status Channel::Write(FrameType type, const std::vector<iovec>& payload, int64_t timeout_ms) {
  FrameHeader header{kFrameMagic, kFrameVersion, static_cast<uint16_t>(type), 0};
  std::vector<iovec> parts = {{&header, sizeof header}};
  parts.reserve(payload.size() + 1);
  for (const iovec& part : payload) {
    if (part.iov_len == 0) continue;
    header.payload_bytes += part.iov_len;
    parts.push_back(part);
  }
  if (header.payload_bytes > max_payload_) {
    return Status::Internal("a frame of " + std::to_string(header.payload_bytes) +
                            " bytes exceeds the limit of " + std::to_string(max_payload_));
  }
  int64_t deadline_ns = 0;  // read the clock only when the socket is full
  for (size_t first = 0; first < parts.size();) {
    msghdr message{};
    message.msg_iov = parts.data() + first;
    message.msg_iovlen = std::min<size_t>(parts.size() - first, IOV_MAX);
    const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      Advance(static_cast<size_t>(sent), &parts, &first);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (deadline_ns == 0) deadline_ns = DeadlineNs(timeout_ms);
      const Status waited = WaitWritable(deadline_ns);
      if (!waited.ok()) return waited;
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return Gone();
    } else if (errno != EINTR) {
      return Status::Unavailable("writing to the peer failed: " + Errno(errno));
    }
  }
  return Status::Ok();
}

Status Channel::WriteMap(FrameType type, const nlohmann::json& map, int64_t timeout_ms) {
  std::vector<uint8_t> bytes = nlohmann::json::to_msgpack(map);
  return Write(type, {{bytes.data(), bytes.size()}}, timeout_ms);
}

// Reads while it waits: the peer may be unable to take our bytes before we take its own.
Status Channel::WaitWritable(int64_t deadline_ns) {
  for (;;) {
    pollfd poll_fd{fd_.get(), static_cast<short>(POLLOUT | (ended_ ? 0 : POLLIN)), 0};
    const int ready = ::poll(&poll_fd, 1, PollTimeout(deadline_ns));
    if (ready < 0 && errno != EINTR) {
      return Status::Unavailable("poll failed: " + Errno(errno));
    }
    if (ready == 0 && MonotonicNs() >= deadline_ns) {
      return Status::DeadlineExceeded("the peer does not read from its socket");
    }
    if (ready <= 0) continue;
    if ((poll_fd.revents & POLLIN) != 0) {
      const Status filled = Fill();
      if (!filled.ok()) return filled;
    }
    if (ended_) return Gone();
    if ((poll_fd.revents & (POLLOUT | POLLERR | POLLHUP)) != 0) return Status::Ok();
  }
}

StatusOr<Channel::Next> Channel::Read(Frame* frame) {
  StatusOr<bool> whole = Parse(frame);
  if (!whole.ok()) return whole.status();
  if (*whole) return Next::kFrame;
  if (!ended_) {
    const Status filled = Fill();
    if (!filled.ok()) return filled;
    whole = Parse(frame);
    if (!whole.ok()) return whole.status();
    if (*whole) return Next::kFrame;
  }
  if (!ended_) return Next::kNone;
  if (begin_ == end_) return Next::kEnd;
  return Status::Unavailable("the peer closed the connection inside a frame");
}

StatusOr<Channel::Next> Channel::WaitRead(Frame* frame, int64_t deadline_ns, int interrupt_fd) {
  for (;;) {
    StatusOr<Next> next = Read(frame);
    if (!next.ok() || *next != Next::kNone) return next;
    pollfd poll_fds[2] = {{fd_.get(), POLLIN, 0}, {interrupt_fd, POLLIN, 0}};
    const int ready = ::poll(poll_fds, 2, PollTimeout(deadline_ns));
    if (ready < 0 && errno != EINTR) {
      return Status::Unavailable("poll failed: " + Errno(errno));
    }
    if (ready > 0 && poll_fds[1].revents != 0) return Status::Cancelled("interrupted");
    if (ready == 0 && MonotonicNs() >= deadline_ns) {
      return Status::DeadlineExceeded("no frame arrived in time");
    }
  }
}

// True when buffer_ begins with a whole frame, which is then taken.
StatusOr<bool> Channel::Parse(Frame* frame) {
  FrameHeader header;
  if (end_ - begin_ < sizeof header) return false;
  std::memcpy(&header, buffer_.data() + begin_, sizeof header);
  if (header.magic != kFrameMagic) {
    return Status::Internal("the peer sent something that is not a frame (magic " +
                            std::to_string(header.magic) + ")");
  }
  if (header.version != kFrameVersion) {
    return Status::Internal("the peer speaks frame version " + std::to_string(header.version) +
                            ", this side " + std::to_string(kFrameVersion));
  }
  if (header.payload_bytes > max_payload_) {
    return Status::Internal("the peer announces a frame of " +
                            std::to_string(header.payload_bytes) + " bytes, the limit is " +
                            std::to_string(max_payload_));
  }
  if (end_ - begin_ - sizeof header < header.payload_bytes) return false;
  frame->type = static_cast<FrameType>(header.type);
  frame->payload = buffer_.data() + begin_ + sizeof header;
  frame->size = header.payload_bytes;
  begin_ += sizeof header + header.payload_bytes;
  return true;
}

// Takes what the socket holds, until it is empty or one buffer is full.
Status Channel::Fill() {
  MakeRoom();
  while (end_ < buffer_.size()) {
    const ssize_t got =
        ::recv(fd_.get(), buffer_.data() + end_, buffer_.size() - end_, MSG_DONTWAIT);
    if (got > 0) {
      end_ += static_cast<size_t>(got);
    } else if (got == 0 || errno == ECONNRESET) {
      ended_ = true;
      return Status::Ok();
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return Status::Ok();
    } else if (errno != EINTR) {
      return Status::Unavailable("reading from the peer failed: " + Errno(errno));
    }
  }
  return Status::Ok();
}

void Channel::MakeRoom() {
  if (begin_ == end_) {
    begin_ = end_ = 0;
    if (buffer_.size() > kKeptBuffer) std::vector<uint8_t>(kFirstBuffer).swap(buffer_);
  } else if (begin_ > 0 && begin_ >= buffer_.size() / 2) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (buffer_.size() - end_ < kFirstBuffer / 2) {
    buffer_.resize(std::max(kFirstBuffer, 2 * buffer_.size()));
  }
}

}  // namespace slipstream
