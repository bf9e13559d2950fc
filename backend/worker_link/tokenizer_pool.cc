// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/tokenizer_pool.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <thread>
#include <utility>

namespace slipstream {
namespace {

using nlohmann::json;

int64_t LeftMs(int64_t deadline_ns) {
  return std::max<int64_t>(0, (deadline_ns - MonotonicNs()) / 1000000);
}

}  // namespace

// Gives the process back in any case. One that is left by an exception is ended first: what it has
// read or will answer is not known.
class TokenizerPool::Turn final {
 public:
  Turn(TokenizerPool* pool, size_t index) : pool_(pool), index_(index) {}
  ~Turn() {
    if (!settled_) link()->reset();
    pool_->GiveBack(index_);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  Link* link() { return &pool_->links_[index_]; }
  void Settle() { settled_ = true; }

 private:
  TokenizerPool* const pool_;
  const size_t index_;
  bool settled_ = false;
};

TokenizerPool::TokenizerPool(TokenizerPoolConfig config)
    : config_(std::move(config)), links_(config_.num_processes) {}

TokenizerPool::~TokenizerPool() { Stop(); }

StatusOr<std::unique_ptr<TokenizerPool>> TokenizerPool::Create(TokenizerPoolConfig config) {
  if (config.num_processes < 1) {
    return Status::InvalidArgument("the number of tokenizer processes is " +
                                   std::to_string(config.num_processes) + ", must be at least 1");
  }
  std::unique_ptr<TokenizerPool> pool(  // NOLINT: private constructor
      new TokenizerPool(std::move(config)));
  const Status started = pool->StartAll();
  if (!started.ok()) return started;
  return {std::move(pool)};
}

Status TokenizerPool::StartAll() {
  std::vector<Status> failures(links_.size());
  std::vector<TokenizerInfo> infos(links_.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < links_.size(); ++i) {
    threads.emplace_back([this, i, &failures, &infos] {
      auto link = StartOne(&infos[i]);
      failures[i] = link.status();
      if (link.ok()) links_[i] = std::move(link).value();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Status& failure : failures) {
    if (!failure.ok()) return failure;
  }
  info_ = std::move(infos[0]);
  idle_.resize(links_.size());
  std::iota(idle_.rbegin(), idle_.rend(), size_t{0});
  return Status::Ok();
}

StatusOr<TokenizerPool::Link> TokenizerPool::StartOne(TokenizerInfo* info) const {
  ChildLink::Options options;
  options.what = "the tokenizer process";
  options.argv = {config_.python};
  options.argv.insert(options.argv.end(), config_.args.begin(), config_.args.end());
  options.config = {{"version", config_.version},
                    {"frame_version", kFrameVersion},
                    {"tokenizer", config_.tokenizer},
                    {"trust_remote_code", config_.trust_remote_code},
                    {"revision", config_.revision.empty() ? json() : json(config_.revision)}};
  options.load_timeout_ms = config_.load_timeout_ms;
  options.interrupt_fd = stop_.get();
  options.log = config_.log;
  json hello;
  auto link = ChildLink::Start(options, &hello);
  if (!link.ok()) return link.status();
  StatusOr<TokenizerInfo> read = ParseTokenizerHello(hello);
  if (!read.ok()) return read.status();
  *info = std::move(read).value();
  return link;
}

StatusOr<TokenizerReply> TokenizerPool::Tokenize(const TokenizerRequest& request) {
  if (request.text.has_value() == !request.messages.is_null()) {
    return Status::InvalidArgument("exactly one of text and messages must be given");
  }
  const json map = ToMap(request);
  const int64_t deadline_ns = DeadlineNs(config_.request_timeout_ms);
  const StatusOr<size_t> index = Take(deadline_ns);
  if (!index.ok()) return index.status();
  const StatusOr<json> reply = AskTwice(*index, map, deadline_ns);
  if (!reply.ok()) return reply.status();
  return ParseTokenizerReply(*reply, request);
}

StatusOr<json> TokenizerPool::AskTwice(size_t index, const json& request, int64_t deadline_ns) {
  Turn turn(this, index);
  Link* link = turn.link();
  const bool was_running = *link != nullptr;
  StatusOr<json> reply = Ask(link, request, deadline_ns);
  // A process that was killed while it idled shows only now. One that dies of the request itself
  // does so twice.
  if (!reply.ok() && *link == nullptr && was_running &&
      reply.status().code() != StatusCode::kDeadlineExceeded) {
    reply = Ask(link, request, deadline_ns);
  }
  turn.Settle();
  return reply;
}

StatusOr<size_t> TokenizerPool::Take(int64_t deadline_ns) {
  std::unique_lock<std::mutex> lock(mutex_);
  const bool taken = changed_.wait_for(lock, std::chrono::milliseconds(LeftMs(deadline_ns)),
                                       [&] { return stopped_ || !idle_.empty(); });
  if (stopped_) return Status::Unavailable("the tokenizer is stopped");
  if (!taken) {
    return Status::Unavailable("all " + std::to_string(links_.size()) +
                               " tokenizer processes were busy for " +
                               std::to_string(config_.request_timeout_ms) + " ms");
  }
  const size_t index = idle_.back();
  idle_.pop_back();
  return index;
}

void TokenizerPool::GiveBack(size_t index) {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(index);
  changed_.notify_one();
}

// Leaves *link null when the process is of no further use.
StatusOr<json> TokenizerPool::Ask(Link* link, const json& request, int64_t deadline_ns) {
  if (*link == nullptr) {
    TokenizerInfo info;
    StatusOr<Link> started = StartOne(&info);
    if (!started.ok()) return started.status();
    *link = std::move(started).value();
  }
  json map = request;
  int64_t id = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    id = next_id_++;
  }
  map["id"] = id;
  Status failure = (*link)->channel().WriteMap(FrameType::kRequest, map, LeftMs(deadline_ns));
  if (!failure.ok()) {
    failure = (*link)->Explain(failure);
  } else {
    StatusOr<json> reply = AwaitReply(link->get(), id, deadline_ns);
    if (reply.ok()) return reply;
    failure = reply.status();
  }
  link->reset();
  return failure;
}

StatusOr<json> TokenizerPool::AwaitReply(ChildLink* link, int64_t id, int64_t deadline_ns) {
  Frame frame;
  const auto next = link->channel().WaitRead(&frame, deadline_ns, stop_.get());
  if (!next.ok()) {
    switch (next.status().code()) {
      case StatusCode::kCancelled:
        return Status::Unavailable("the tokenizer is stopped");
      case StatusCode::kDeadlineExceeded:
        return Status::DeadlineExceeded("the tokenizer process did not answer within " +
                                        std::to_string(config_.request_timeout_ms) + " ms");
      default:
        return link->Explain(next.status());
    }
  }
  if (*next == Channel::Next::kEnd) {
    return link->Explain(Status::Unavailable("the peer closed the connection"));
  }
  if (frame.type == FrameType::kError) return link->TakeError(frame);
  if (frame.type != FrameType::kReply) return link->Unexpected(frame);
  StatusOr<json> map = ParseMap(frame);
  if (!map.ok()) return map;
  if (Status s = CheckReplyId(*map, id); !s.ok()) return s;
  return map;
}

void TokenizerPool::Stop() {
  stop_.Set();
  const std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

}  // namespace slipstream
