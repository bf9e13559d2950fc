// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "executor/status.h"
#include "worker_link/child_link.h"
#include "worker_link/tokenizer_messages.h"
#include "worker_link/wake_fd.h"

namespace slipstream {

struct TokenizerPoolConfig {
  std::string python = "python3";  // looked up on PATH
  std::vector<std::string> args = {"-m", "slipstream.tokenizer"};
  std::string version;    // of Slipstream, for the process's log
  std::string tokenizer;  // a directory or a hub id
  std::string revision;   // empty = the default one
  bool trust_remote_code = false;
  int32_t num_processes = 1;
  int64_t load_timeout_ms = 300000;
  int64_t request_timeout_ms = 60000;  // from the call of Tokenize, waiting for a process included
  LogSink log;                         // may be empty; called from any thread
};

// Tokenizer processes: HF tokenizers and chat templates, outside our process. Thread-safe.
//
// A caller has a process to itself for one request; the others wait. A process that dies is
// started again, and the request that saw it die is tried once more. One that does not answer in
// time is killed.
class TokenizerPool {
 public:
  // Starts all processes at once and waits until they have loaded.
  static StatusOr<std::unique_ptr<TokenizerPool>> Create(TokenizerPoolConfig config);
  ~TokenizerPool();  // Stop; no call may be running
  TokenizerPool(const TokenizerPool&) = delete;
  TokenizerPool& operator=(const TokenizerPool&) = delete;

  const TokenizerInfo& info() const { return info_; }

  // kInvalidArgument and kUnsupported are about the request and name its field.
  StatusOr<TokenizerReply> Tokenize(const TokenizerRequest& request);

  // Calls that run or wait return kUnavailable soon, later ones at once.
  void Stop();

 private:
  using Link = std::unique_ptr<ChildLink>;  // null: to be started again
  class Turn;                               // a process for the length of a request

  explicit TokenizerPool(TokenizerPoolConfig config);
  Status StartAll();
  StatusOr<Link> StartOne(TokenizerInfo* info) const;
  StatusOr<size_t> Take(int64_t deadline_ns);
  void GiveBack(size_t index);
  StatusOr<nlohmann::json> AskTwice(size_t index, const nlohmann::json& request,
                                    int64_t deadline_ns);
  StatusOr<nlohmann::json> Ask(Link* link, const nlohmann::json& request, int64_t deadline_ns);
  StatusOr<nlohmann::json> AwaitReply(ChildLink* link, int64_t id, int64_t deadline_ns);

  const TokenizerPoolConfig config_;
  TokenizerInfo info_;       // constant after Create
  WakeFd stop_;              // set for good by Stop
  std::vector<Link> links_;  // each belongs to the caller that took its index
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<size_t> idle_;
  bool stopped_ = false;
  int64_t next_id_ = 1;
};

}  // namespace slipstream
