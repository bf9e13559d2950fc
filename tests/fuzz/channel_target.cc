// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/channel.h"

#include <sys/socket.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "input_bytes.h"
#include "targets.h"

namespace slipstream::fuzz {
namespace {

constexpr uint64_t kMaxPayload = 3000;

// How a stream of bytes reads: its frames, and why it ends.
struct Reading {
  std::vector<std::pair<uint16_t, std::string>> frames;
  StatusCode end = StatusCode::kOk;  // after the last whole frame

  bool operator==(const Reading& other) const { return frames == other.frames && end == other.end; }
};

// The definition, of all bytes at once.
Reading Reference(const std::string& bytes) {
  Reading reading;
  InputBytes in(bytes);
  while (in.rest().size() >= sizeof(FrameHeader)) {
    const auto header = in.Value<FrameHeader>();
    if (header.magic != kFrameMagic || header.version != kFrameVersion ||
        header.payload_bytes > kMaxPayload) {
      reading.end = StatusCode::kInternal;
      return reading;
    }
    if (in.rest().size() < header.payload_bytes) {
      reading.end = StatusCode::kUnavailable;
      return reading;
    }
    reading.frames.emplace_back(header.type, in.Bytes(header.payload_bytes));
  }
  if (!in.empty()) reading.end = StatusCode::kUnavailable;
  return reading;
}

// Takes what has arrived; true at the end of the stream.
bool ReadAll(Channel* channel, Reading* reading) {
  for (;;) {
    Frame frame;
    const auto next = channel->Read(&frame);
    if (!next.ok()) {
      reading->end = next.status().code();
      return true;
    }
    if (*next != Channel::Next::kFrame) return *next == Channel::Next::kEnd;
    reading->frames.emplace_back(static_cast<uint16_t>(frame.type),
                                 std::string(AsText(frame.payload, frame.size)));
    const auto map = ParseMap(frame);
    Require(!map.ok() || map->is_object(), "a map");
    Require(map.ok() || map.status().code() == StatusCode::kInternal, "a wrong map is our fault");
  }
}

// The sizes of the pieces that a stream arrives in, then the stream.
void Run(const uint8_t* data, size_t size) {
  InputBytes in(data, size);
  std::vector<size_t> cuts(in.Below(20));
  for (size_t& cut : cuts) cut = in.Value<uint16_t>();
  std::string stream(in.rest());
  stream.resize(std::min<size_t>(stream.size(), 1 << 16));  // fits a socket
  int ends[2];
  Require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "a socketpair");
  UniqueFd peer(ends[0]);
  Channel channel(UniqueFd(ends[1]), kMaxPayload);
  Reading reading;
  cuts.push_back(stream.size());
  InputBytes left(stream);
  bool ended = false;
  for (size_t i = 0; i < cuts.size() && !ended; ++i) {
    const std::string piece = left.Bytes(cuts[i]);
    Require(::send(peer.get(), piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
                static_cast<ssize_t>(piece.size()),
            "the socket takes it");
    ended = ReadAll(&channel, &reading);
  }
  peer.Reset();
  Require(ended || ReadAll(&channel, &reading), "it ends with the stream");
  Require(reading == Reference(stream), "the frames are those of the stream, however it arrives");
}

std::string FrameOf(FrameType type, const std::string& payload) {
  return OutputBytes()
      .Value(FrameHeader{kFrameMagic, kFrameVersion, static_cast<uint16_t>(type), payload.size()})
      .Raw(payload)
      .bytes();
}

std::string Seed(const std::vector<uint16_t>& cuts, const std::string& stream) {
  OutputBytes out;
  out.Byte(cuts.size());
  for (const uint16_t cut : cuts) out.Value(cut);
  return out.Raw(stream).bytes();
}

std::vector<std::string> Seeds() {
  const std::vector<uint8_t> map = nlohmann::json::to_msgpack({{"fraction", 0.5}, {"what", "w"}});
  const std::string progress = FrameOf(FrameType::kProgress, std::string(map.begin(), map.end()));
  std::string payload(2500, 0);
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(i * 7);
  const std::string result = FrameOf(FrameType::kResult, payload);
  std::string many;  // more than a buffer holds
  for (int i = 0; i < 25; ++i) many += result;
  return {Seed({}, progress + result),
          Seed({3, 20, 1, 1}, progress + progress),
          Seed({100, 2000}, result + progress),
          Seed({2600, 30000}, many),
          Seed({40000, 1000}, many),
          Seed({16}, FrameOf(FrameType::kShutdown, "\x80") + FrameOf(FrameType::kError, ""))};
}

}  // namespace

FuzzTarget ChannelTarget() { return {"channel", Run, Seeds}; }

}  // namespace slipstream::fuzz
