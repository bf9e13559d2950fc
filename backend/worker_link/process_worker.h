// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "executor/worker_port.h"
#include "worker_link/child_link.h"
#include "worker_link/step_codec.h"
#include "worker_link/wake_fd.h"

namespace slipstream {

struct ProcessWorkerConfig {
  std::string python = "python3";  // looked up on PATH
  std::vector<std::string> args = {"-m", "slipstream.worker"};
  nlohmann::json config = nlohmann::json::object();  // the CONFIG frame; frame_version is added
  int64_t load_timeout_ms = 1800000;                 // process start to model loaded
  // A restart hangs that takes longer than this and than kRestartFactor times the first start.
  int64_t restart_timeout_ms = 60000;
  int64_t send_timeout_ms = 30000;  // a worker that takes no bytes for so long hangs
  int64_t stop_grace_ms = 2000;     // an idle worker may exit by itself for so long
  LogSink log;                      // tracebacks; may be empty
};

// The worker process of one rank.
//
// Interrupt() holds until it ended one Start: the one that waits, else the next.
class ProcessWorker : public WorkerPort {
 public:
  explicit ProcessWorker(ProcessWorkerConfig config);
  ~ProcessWorker() override;

  StatusOr<WorkerInfo> Start(const Progress& progress) override;
  Status Send(const StepPlan& plan) override;
  Reply Receive(StepResult* result, std::string* why) override;
  std::vector<uint64_t> TakeExpertTokens() override;
  int fd() const override { return link_ ? epoll_.get() : -1; }
  void Stop() override;
  void Interrupt() override { interrupt_.Set(); }

  pid_t pid() const { return link_ ? link_->pid() : -1; }

 private:
  static constexpr int64_t kRestartFactor = 4;
  Reply Fail(const Status& status, std::string* why);
  StatusOr<Channel::Next> ReadFrame(Frame* frame);
  Status AddStats(const Frame& frame);
  Status WatchLink();
  void NoteBuffered();

  const ProcessWorkerConfig config_;
  // Size of the KV cache once the first start settled it: a restart asks for the same, whatever
  // memory is free then, since requests were accepted against it.
  int64_t kv_cache_tokens_ = 0;
  int64_t load_timeout_ms_;
  WakeFd interrupt_;
  std::unique_ptr<ChildLink> link_;
  // What fd() gives out: the socket, or frames that were already taken from it (buffered_).
  UniqueFd epoll_;
  WakeFd buffered_;
  bool buffered_set_ = false;
  bool failed_ = false;
  StepEncoder encoder_;
  std::deque<SentStep> in_flight_;
  std::vector<SentStep> spare_;  // capacity to reuse
  // What STATS frames told since it was last taken, of earlier workers too.
  std::vector<uint64_t> expert_tokens_;
  bool has_expert_tokens_ = false;
};

}  // namespace slipstream
