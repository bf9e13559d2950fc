// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "worker_link/channel.h"
#include "worker_link/step_codec.h"
#include "worker_link/wake_fd.h"

namespace slipstream {
namespace {

constexpr int64_t kLong = 20000;  // ms; no test waits that long unless it fails

struct Pair {
  UniqueFd a;
  UniqueFd b;
};

Pair MakePair() {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

void SendRaw(int fd, const void* bytes, size_t size) {
  REQUIRE(::send(fd, bytes, size, MSG_NOSIGNAL) == static_cast<ssize_t>(size));
}

std::vector<uint8_t> RawFrame(FrameType type, const std::string& payload) {
  const FrameHeader header{kFrameMagic, kFrameVersion, static_cast<uint16_t>(type), payload.size()};
  std::vector<uint8_t> bytes(sizeof header + payload.size());
  std::memcpy(bytes.data(), &header, sizeof header);
  std::memcpy(bytes.data() + sizeof header, payload.data(), payload.size());
  return bytes;
}

std::string Payload(const Frame& frame) {
  return {reinterpret_cast<const char*>(frame.payload), frame.size};
}

iovec Part(std::string* text) { return {text->data(), text->size()}; }

Status ReadError(Channel* channel) {
  Frame frame;
  const auto next = channel->Read(&frame);
  REQUIRE_FALSE(next.ok());
  return next.status();
}

}  // namespace

TEST_CASE("channel: several parts arrive as one frame, several frames in order") {
  Pair pair = MakePair();
  Channel sender(std::move(pair.a));
  Channel receiver(std::move(pair.b));
  std::string one = "one", empty, two = "two";
  REQUIRE(sender.Write(FrameType::kStep, {Part(&one), Part(&empty), Part(&two)}, kLong).ok());
  REQUIRE(sender.WriteMap(FrameType::kShutdown, nlohmann::json::object(), kLong).ok());
  Frame frame;
  REQUIRE(receiver.Read(&frame).value() == Channel::Next::kFrame);
  CHECK(frame.type == FrameType::kStep);
  CHECK(Payload(frame) == "onetwo");
  CHECK(receiver.has_buffered());
  REQUIRE(receiver.Read(&frame).value() == Channel::Next::kFrame);
  CHECK(frame.type == FrameType::kShutdown);
  CHECK(ParseMap(frame).value() == nlohmann::json::object());
  CHECK_FALSE(receiver.has_buffered());
  CHECK(receiver.Read(&frame).value() == Channel::Next::kNone);
}

TEST_CASE("channel: a frame that arrives byte by byte is none until it is whole") {
  Pair pair = MakePair();
  Channel receiver(std::move(pair.b));
  const auto bytes = RawFrame(FrameType::kResult, "hello");
  Frame frame;
  for (size_t i = 0; i + 1 < bytes.size(); ++i) {
    SendRaw(pair.a.get(), &bytes[i], 1);
    REQUIRE(receiver.Read(&frame).value() == Channel::Next::kNone);
  }
  SendRaw(pair.a.get(), &bytes.back(), 1);
  REQUIRE(receiver.Read(&frame).value() == Channel::Next::kFrame);
  CHECK(Payload(frame) == "hello");
}

TEST_CASE("channel: the end of file, between frames and inside one") {
  Pair pair = MakePair();
  Channel receiver(std::move(pair.b));
  const auto bytes = RawFrame(FrameType::kResult, "last");
  Frame frame;
  SUBCASE("between") {
    SendRaw(pair.a.get(), bytes.data(), bytes.size());
    pair.a.Reset();
    REQUIRE(receiver.Read(&frame).value() == Channel::Next::kFrame);
    CHECK(Payload(frame) == "last");
    CHECK(receiver.Read(&frame).value() == Channel::Next::kEnd);
    CHECK(receiver.Read(&frame).value() == Channel::Next::kEnd);
  }
  SUBCASE("inside") {
    SendRaw(pair.a.get(), bytes.data(), bytes.size() - 1);
    pair.a.Reset();
    CHECK(ReadError(&receiver).code() == StatusCode::kUnavailable);
  }
}

TEST_CASE("channel: garbage and oversized frames are errors, and cost no memory") {
  Pair pair = MakePair();
  Channel receiver(std::move(pair.b), 1000);
  FrameHeader header{kFrameMagic, kFrameVersion, 7, 1001};
  std::string expected = "announces a frame of 1001 bytes, the limit is 1000";
  SUBCASE("size") {}
  SUBCASE("magic") {
    header.magic = 0x20545448;  // "HTT "
    expected = "not a frame";
  }
  SUBCASE("version") {
    header.version = 9;
    expected = "frame version 9, this side 3";
  }
  SendRaw(pair.a.get(), &header, sizeof header);
  const Status status = ReadError(&receiver);
  CHECK(status.code() == StatusCode::kInternal);
  CHECK(status.message().find(expected) != std::string::npos);
}

TEST_CASE("channel: a msgpack payload that is no map") {
  for (const std::string payload : {"", "\x93\x01\x02\x03", "\x81\xa1", "\xc1", "\x80\x80"}) {
    const Frame frame{FrameType::kHello, reinterpret_cast<const uint8_t*>(payload.data()),
                      payload.size()};
    CHECK_FALSE(ParseMap(frame).ok());
  }
}

TEST_CASE("channel: writing to a closed peer is an error, not a signal") {
  Pair pair = MakePair();
  Channel sender(std::move(pair.a));
  pair.b.Reset();
  std::string text = "x";
  const Status status = sender.Write(FrameType::kStep, {Part(&text)}, kLong);
  CHECK(status.code() == StatusCode::kUnavailable);
}

TEST_CASE("channel: a peer that never reads runs into the time-out") {
  Pair pair = MakePair();
  Channel sender(std::move(pair.a));
  std::string text(8 << 20, 'x');
  const Status status = sender.Write(FrameType::kStep, {Part(&text)}, 50);
  CHECK(status.code() == StatusCode::kDeadlineExceeded);
}

TEST_CASE("channel: two sides that both write large frames do not wait for each other") {
  Pair pair = MakePair();
  const auto exchange = [](UniqueFd fd, char fill) {
    Channel channel(std::move(fd));
    std::string text(32 << 20, fill);
    if (!channel.Write(FrameType::kStep, {Part(&text)}, kLong).ok()) return std::string();
    Frame frame;
    const auto next = channel.WaitRead(&frame, DeadlineNs(kLong), -1);
    return next.ok() && *next == Channel::Next::kFrame ? Payload(frame) : std::string();
  };
  std::string got;
  std::thread other([&] { got = exchange(std::move(pair.b), 'b'); });
  CHECK(exchange(std::move(pair.a), 'a') == std::string(32 << 20, 'b'));
  other.join();
  CHECK(got == std::string(32 << 20, 'a'));
}

TEST_CASE("channel: a wait ends by deadline and by interruption") {
  Pair pair = MakePair();
  Channel receiver(std::move(pair.b));
  Frame frame;
  CHECK(receiver.WaitRead(&frame, DeadlineNs(20), -1).status().code() ==
        StatusCode::kDeadlineExceeded);
  WakeFd wake;
  std::thread waker([&] { wake.Set(); });
  CHECK(receiver.WaitRead(&frame, DeadlineNs(kLong), wake.get()).status().code() ==
        StatusCode::kCancelled);
  waker.join();
}

TEST_CASE("step codec: arrays start at multiples of eight") {
  StepPlan plan;
  plan.step_id = 7;
  plan.slot = plan.num_tokens = plan.first_position = plan.num_new_blocks = plan.flags = {1};
  plan.token_ids = {10, 11, 12};
  StepEncoder encoder;
  size_t size = 0;
  for (const iovec& part : encoder.Encode(plan)) size += part.iov_len;
  // The header, five arrays of 4 + 4 padding, 12 + 4 bytes of tokens.
  CHECK(size == sizeof(StepHeader) + 5 * 8 + 16);
}

namespace {

// A result of two sequences, the first with a token.
struct ResultBytes {
  ResultHeader header{5, 100, 200, 0, 2, 1, 0, 0};
  uint32_t slot[2] = {4, 2};
  uint32_t status[2] = {0, 0};
  uint32_t num_tokens[2] = {1, 0};
  uint32_t logprob_width[2] = {0, 0};
  uint32_t context_rows[2] = {0, 0};
  uint32_t generation_rows[2] = {0, 0};
  int32_t tokens[2] = {77, 0};  // one token and padding
};

Status Decode(const ResultBytes& bytes, size_t size, StepResult* result) {
  return DecodeResult(reinterpret_cast<const uint8_t*>(&bytes), size, {5, {4, 2}}, result);
}

}  // namespace

TEST_CASE("step codec: a result is read, with and without padding at its end") {
  for (const size_t size : {sizeof(ResultBytes), sizeof(ResultBytes) - 4}) {
    StepResult result;
    REQUIRE(Decode({}, size, &result).ok());
    CHECK(result.step_id == 5);
    CHECK(result.end_ns == 200);
    CHECK(result.slot == std::vector<uint32_t>{4, 2});
    CHECK(result.tokens == std::vector<int32_t>{77});
    CHECK(result.logits.empty());
  }
}

TEST_CASE("step codec: a result that does not fit the plan or itself is refused") {
  ResultBytes bytes;
  size_t size = sizeof bytes;
  std::string expected;
  SUBCASE("step") {
    bytes.header.step_id = 6;
    expected = "names step 6";
  }
  SUBCASE("sequences") {
    bytes.header.num_seqs = 3;
    expected = "3 sequences, the plan 2";
  }
  SUBCASE("slots") {
    bytes.slot[1] = 3;
    expected = "slots are not the plan's";
  }
  SUBCASE("tokens") {
    bytes.num_tokens[1] = 1;
    expected = "1 tokens, its sequences 2";
  }
  SUBCASE("log probabilities") {
    bytes.logprob_width[0] = 2;
    expected = "0 log probabilities, its sequences 2";
  }
  SUBCASE("too short") {
    size -= 8;
    expected = "does not hold";
  }
  SUBCASE("too long") {
    bytes.header.num_tokens = 0;
    expected = "does not hold";
  }
  SUBCASE("counts that overflow") {
    bytes.header.num_logits = uint64_t{1} << 62;
    expected = "does not hold";
  }
  SUBCASE("no header") {
    size = 8;
    expected = "has no header";
  }
  StepResult result;
  const Status status = Decode(bytes, size, &result);
  CHECK(status.code() == StatusCode::kInternal);
  CHECK(status.message().find(expected) != std::string::npos);
}

}  // namespace slipstream
