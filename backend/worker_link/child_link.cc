// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/child_link.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace slipstream {
namespace {

using nlohmann::json;

constexpr int64_t kControlWriteMs = 10000;
// Long enough for a dying process to become a zombie after its sockets closed.
constexpr int64_t kReapMs = 500;

std::string StringOr(const json& map, const char* key, const std::string& fallback) {
  const auto it = map.find(key);
  return it != map.end() && it->is_string() ? it->get<std::string>() : fallback;
}

}  // namespace

ChildLink::ChildLink(const Options& options, std::unique_ptr<ChildProcess> child, UniqueFd fd)
    : what_(options.what), log_(options.log), child_(std::move(child)), channel_(std::move(fd)) {}

ChildLink::~ChildLink() { Stop(0); }

StatusOr<std::unique_ptr<ChildLink>> ChildLink::Start(const Options& options, json* hello) {
  std::vector<std::string> argv = options.argv;
  argv.insert(argv.end(), {"--fd", std::to_string(ChildProcess::kChildFd)});
  UniqueFd fd;
  auto child = ChildProcess::Spawn(argv, &fd);
  if (!child.ok()) return child.status();
  std::unique_ptr<ChildLink> link(  // NOLINT: private constructor
      new ChildLink(options, std::move(child).value(), std::move(fd)));
  const Status loaded = link->AwaitHello(options, hello);
  if (!loaded.ok()) return loaded;
  return {std::move(link)};
}

Status ChildLink::AwaitHello(const Options& options, json* hello) {
  const int64_t deadline_ns = DeadlineNs(options.load_timeout_ms);
  const Status sent = channel_.WriteMap(FrameType::kConfig, options.config, kControlWriteMs);
  if (!sent.ok()) return Explain(sent);
  for (;;) {
    Frame frame;
    const auto next = channel_.WaitRead(&frame, deadline_ns, options.interrupt_fd);
    if (!next.ok() && next.status().code() == StatusCode::kDeadlineExceeded) {
      return Status::Unavailable(what_ + " did not finish loading within " +
                                 std::to_string(options.load_timeout_ms) +
                                 " ms (the load time-out)");
    }
    if (!next.ok() && next.status().code() == StatusCode::kCancelled) {
      return Status::Unavailable("the start of " + what_ + " was interrupted");
    }
    if (!next.ok()) return Explain(next.status());
    if (*next == Channel::Next::kEnd) {
      return Explain(Status::Unavailable("the peer closed the connection"));
    }
    if (frame.type == FrameType::kError) return TakeError(frame);
    if (frame.type != FrameType::kHello && frame.type != FrameType::kProgress) {
      return Unexpected(frame);
    }
    StatusOr<json> map = ParseMap(frame);
    if (!map.ok()) return Explain(map.status());
    if (frame.type == FrameType::kHello) {
      *hello = std::move(map).value();
      return Status::Ok();
    }
    const auto fraction = map->find("fraction");
    if (options.progress && fraction != map->end() && fraction->is_number()) {
      options.progress(fraction->get<double>(), StringOr(*map, "what", ""));
    }
  }
}

Status ChildLink::Explain(const Status& symptom) {
  // A process that fails says why before it goes; the frame may still wait to be read.
  Frame frame;
  for (;;) {
    const auto next = channel_.Read(&frame);
    if (!next.ok() || *next != Channel::Next::kFrame) break;
    if (frame.type == FrameType::kError) return TakeError(frame);
  }
  if (symptom.code() == StatusCode::kUnavailable && child_->WaitExit(kReapMs)) {
    return Status::Unavailable(what_ + " died: " + child_->ExitDescription());
  }
  child_->Kill();
  return {symptom.code(), what_ + ": " + symptom.message()};
}

Status ChildLink::TakeError(const Frame& frame) {
  const StatusOr<json> map = ParseMap(frame);
  const std::string message = map.ok() ? StringOr(*map, "message", "") : std::string();
  const std::string traceback = map.ok() ? StringOr(*map, "traceback", "") : std::string();
  if (log_ && !traceback.empty()) log_(what_ + " failed:\n" + traceback);
  child_->WaitExit(kReapMs);  // it exits by itself: let it finish its last words on stderr
  child_->Kill();
  return Status::Internal(what_ + " failed: " + (message.empty() ? "no message" : message));
}

Status ChildLink::Unexpected(const Frame& frame) {
  child_->Kill();
  return Status::Internal(what_ + " sent a frame of type " +
                          std::to_string(static_cast<int>(frame.type)) + " out of turn");
}

void ChildLink::Stop(int64_t grace_ms) {
  if (grace_ms > 0) {
    const Status asked = channel_.WriteMap(FrameType::kShutdown, json::object(), grace_ms);
    if (asked.ok() && child_->WaitExit(grace_ms)) return;
  }
  child_->Kill();
}

const json* MapReader::Find(const char* key, const char* type, bool (*is)(const json&)) {
  const auto it = map_.find(key);
  if (it == map_.end()) {
    Fail(key, "is missing");
    return nullptr;
  }
  if (!is(*it)) {
    Fail(key, std::string("is not ") + type);
    return nullptr;
  }
  return &*it;
}

void MapReader::Fail(const char* key, const std::string& problem) {
  if (status_.ok()) status_ = Status::Internal(what_ + ": " + key + " " + problem);
}

int64_t MapReader::Integer(const char* key, int64_t low, int64_t high) {
  const json* value = Find(key, "an integer", [](const json& v) { return v.is_number_integer(); });
  if (value == nullptr) return low;
  const bool huge = value->is_number_unsigned() &&
                    value->get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
  const int64_t number = huge ? std::numeric_limits<int64_t>::max() : value->get<int64_t>();
  if (number < low || number > high) {
    Fail(key, "is " + value->dump() + ", must be between " + std::to_string(low) + " and " +
                  std::to_string(high));
    return low;
  }
  return number;
}

bool MapReader::Boolean(const char* key) {
  const json* value = Find(key, "a boolean", [](const json& v) { return v.is_boolean(); });
  return value != nullptr && value->get<bool>();
}

std::string MapReader::String(const char* key) {
  const json* value = Find(key, "a string", [](const json& v) { return v.is_string(); });
  return value == nullptr ? std::string() : value->get<std::string>();
}

std::string MapReader::Bytes(const char* key) {
  const json* value = Find(key, "binary", [](const json& v) { return v.is_binary(); });
  if (value == nullptr) return {};
  const auto& bytes = value->get_binary();
  return {bytes.begin(), bytes.end()};
}

std::vector<int32_t> MapReader::Ids(const char* key, const std::string& what) {
  const json* value = Find(key, ("a list of " + what).c_str(), [](const json& v) {
    return v.is_array() && std::all_of(v.begin(), v.end(), [](const json& item) {
             return item.is_number_unsigned() &&
                    item.get<uint64_t>() <= uint64_t{std::numeric_limits<int32_t>::max()};
           });
  });
  std::vector<int32_t> ids;
  if (value == nullptr) return ids;
  for (const json& item : *value) ids.push_back(item.get<int32_t>());
  return ids;
}

std::vector<json> MapReader::Maps(const char* key) {
  const json* value = Find(key, "a list of maps", [](const json& v) {
    return v.is_array() &&
           std::all_of(v.begin(), v.end(), [](const json& item) { return item.is_object(); });
  });
  if (value == nullptr) return {};
  return {value->begin(), value->end()};
}

}  // namespace slipstream
