// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "executor/status.h"
#include "worker_link/channel.h"
#include "worker_link/child_process.h"

namespace slipstream {

// One line for the server's log.
using LogSink = std::function<void(const std::string& line)>;

// A Python process of ours and the connection to it, from the handshake on. Used by one thread.
class ChildLink {
 public:
  struct Options {
    std::string what;               // for messages: "the worker", "the tokenizer process"
    std::vector<std::string> argv;  // "--fd" and its number are appended
    nlohmann::json config;          // the CONFIG frame
    int64_t load_timeout_ms = 0;    // spawn to HELLO
    int interrupt_fd = -1;          // readable: give up waiting for HELLO
    std::function<void(double fraction, const std::string& what)> progress;  // may be empty
    LogSink log;                                                             // may be empty
  };

  // Starts the process and waits for its HELLO, which goes to *hello. The errors carry the
  // process's own message (its ERROR frame) where it gave one, else how it ended.
  static StatusOr<std::unique_ptr<ChildLink>> Start(const Options& options, nlohmann::json* hello);
  ~ChildLink();  // Stop(0)
  ChildLink(const ChildLink&) = delete;
  ChildLink& operator=(const ChildLink&) = delete;

  Channel& channel() { return channel_; }
  pid_t pid() const { return child_->pid(); }

  // Turns the failure of a channel call into the best explanation there is; the process is killed.
  Status Explain(const Status& symptom);
  // Turns an ERROR frame into its message; the traceback goes to the log. The process is killed.
  Status TakeError(const Frame& frame);
  // Any other frame that has no business here.
  Status Unexpected(const Frame& frame);

  // Asks the process to exit and waits so long; then kills it. 0: kills at once.
  void Stop(int64_t grace_ms);

 private:
  ChildLink(const Options& options, std::unique_ptr<ChildProcess> child, UniqueFd fd);
  Status AwaitHello(const Options& options, nlohmann::json* hello);

  const std::string what_;
  const LogSink log_;
  std::unique_ptr<ChildProcess> child_;
  Channel channel_;
};

// Typed access to a msgpack map that a child sent: errors name the key.
class MapReader {
 public:
  MapReader(const nlohmann::json& map, std::string what) : map_(map), what_(std::move(what)) {}

  // Integer in [low, high]; the first fault stays in status().
  int64_t Integer(const char* key, int64_t low, int64_t high);
  bool Boolean(const char* key);
  std::string String(const char* key);
  std::string Bytes(const char* key);
  std::vector<int32_t> Ids(const char* key, const std::string& what = "token ids");
  std::vector<nlohmann::json> Maps(const char* key);
  // Notes a fault that only the caller can see.
  void Fail(const char* key, const std::string& problem);

  const Status& status() const { return status_; }

 private:
  const nlohmann::json* Find(const char* key, const char* type, bool (*is)(const nlohmann::json&));

  const nlohmann::json& map_;
  const std::string what_;
  Status status_;
};

}  // namespace slipstream
