// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/process_worker.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "worker_link/worker_messages.h"

namespace slipstream {
namespace {

bool Watch(int epoll_fd, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  return ::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

ProcessWorker::ProcessWorker(ProcessWorkerConfig config)
    : config_(std::move(config)), load_timeout_ms_(config_.load_timeout_ms) {}

ProcessWorker::~ProcessWorker() { Stop(); }

StatusOr<WorkerInfo> ProcessWorker::Start(const Progress& progress) {
  Stop();
  ChildLink::Options options;
  options.what = "the worker";
  options.argv = {config_.python};
  options.argv.insert(options.argv.end(), config_.args.begin(), config_.args.end());
  options.config = config_.config;
  options.config["frame_version"] = kFrameVersion;
  if (kv_cache_tokens_ > 0) {
    options.config["kv_cache_tokens"] = kv_cache_tokens_;
    options.config["kv_cache_bytes"] = 0;  // or a share of what is free now might be smaller
    options.config["kv_cache_fraction"] = 0.0;
    options.config["token_table"] = false;  // the first worker told it; it takes seconds to make
  }
  options.load_timeout_ms = load_timeout_ms_;
  options.interrupt_fd = interrupt_.get();
  options.progress = progress;
  options.log = config_.log;
  nlohmann::json hello;
  const auto start = std::chrono::steady_clock::now();
  auto link = ChildLink::Start(options, &hello);
  if (!link.ok()) {
    interrupt_.Clear();
    return link.status();
  }
  StatusOr<WorkerInfo> info = ParseWorkerHello(hello);
  if (!info.ok()) return info;
  if (kv_cache_tokens_ == 0) {
    // Clients wait for a restart, and take a model that restarts for one that serves.
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - start);
    load_timeout_ms_ =
        std::min(config_.load_timeout_ms,
                 std::max(config_.restart_timeout_ms, kRestartFactor * int64_t{took.count()}));
  }
  kv_cache_tokens_ = int64_t{info->kv_groups.front().num_blocks} * info->tokens_per_block;
  const size_t counts = info->expert_layers.size() * static_cast<size_t>(info->num_experts);
  if (expert_tokens_.size() != counts) expert_tokens_.assign(counts, 0);
  link_ = std::move(link).value();
  const Status watched = WatchLink();
  if (!watched.ok()) {
    Stop();
    return watched;
  }
  return info;
}

Status ProcessWorker::WatchLink() {
  epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!Watch(epoll_.get(), link_->channel().fd()) || !Watch(epoll_.get(), buffered_.get())) {
    return Status::Unavailable(std::string("epoll failed: ") + std::strerror(errno));
  }
  NoteBuffered();
  return Status::Ok();
}

Status ProcessWorker::Send(const StepPlan& plan) {
  if (!link_ || failed_) return Status::Unavailable("the worker is not running");
  const Status sent =
      link_->channel().Write(FrameType::kStep, encoder_.Encode(plan), config_.send_timeout_ms);
  if (!sent.ok()) {
    failed_ = true;
    return link_->Explain(sent);
  }
  SentStep step;
  if (!spare_.empty()) {
    step = std::move(spare_.back());
    spare_.pop_back();
  }
  step.step_id = plan.step_id;
  step.slots.assign(plan.slot.begin(), plan.slot.end());
  in_flight_.push_back(std::move(step));
  NoteBuffered();
  return Status::Ok();
}

WorkerPort::Reply ProcessWorker::Receive(StepResult* result, std::string* why) {
  if (!link_ || failed_) {
    return Fail(Status::Unavailable("the worker is not running"), why);
  }
  Frame frame;
  const auto next = ReadFrame(&frame);
  if (!next.ok()) return Fail(next.status(), why);
  if (*next == Channel::Next::kNone) {
    // What is buffered is part of a frame: the rest of it will wake the socket.
    if (std::exchange(buffered_set_, false)) buffered_.Clear();
    return Reply::kNone;
  }
  if (*next == Channel::Next::kEnd) {
    return Fail(link_->Explain(Status::Unavailable("the peer closed the connection")), why);
  }
  if (frame.type == FrameType::kError) return Fail(link_->TakeError(frame), why);
  if (frame.type != FrameType::kResult || in_flight_.empty()) {
    return Fail(link_->Unexpected(frame), why);
  }
  const Status decoded = DecodeResult(frame.payload, frame.size, in_flight_.front(), result);
  if (!decoded.ok()) return Fail(decoded, why);
  spare_.push_back(std::move(in_flight_.front()));
  in_flight_.pop_front();
  NoteBuffered();
  return Reply::kResult;
}

// The next frame that is not a STATS frame: those are added up on the way.
StatusOr<Channel::Next> ProcessWorker::ReadFrame(Frame* frame) {
  for (;;) {
    auto next = link_->channel().Read(frame);
    if (!next.ok()) return link_->Explain(next.status());
    if (*next != Channel::Next::kFrame || frame->type != FrameType::kStats) return next;
    const Status added = AddStats(*frame);
    if (!added.ok()) return added;
  }
}

Status ProcessWorker::AddStats(const Frame& frame) {
  const StatusOr<nlohmann::json> map = ParseMap(frame);
  if (!map.ok()) return map.status();
  if (Status s = AddWorkerStats(*map, &expert_tokens_); !s.ok()) return s;
  has_expert_tokens_ = true;
  return Status::Ok();
}

std::vector<uint64_t> ProcessWorker::TakeExpertTokens() {
  if (!std::exchange(has_expert_tokens_, false)) return {};
  return std::exchange(expert_tokens_, std::vector<uint64_t>(expert_tokens_.size()));
}

void ProcessWorker::NoteBuffered() {
  if (buffered_set_ || !link_->channel().has_buffered()) return;
  buffered_set_ = true;
  buffered_.Set();
}

WorkerPort::Reply ProcessWorker::Fail(const Status& status, std::string* why) {
  failed_ = true;
  *why = status.message();
  return Reply::kFailed;
}

void ProcessWorker::Stop() {
  if (link_) {
    // A worker that is broken or busy has nothing left to say.
    link_->Stop(failed_ || !in_flight_.empty() ? 0 : config_.stop_grace_ms);
  }
  link_.reset();
  epoll_.Reset();
  if (std::exchange(buffered_set_, false)) buffered_.Clear();
  failed_ = false;
  in_flight_.clear();
}

}  // namespace slipstream
