// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/text_queue.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <limits>

#include "triton/error.h"

namespace slipstream::triton {
namespace {

TimeNs Now() { return static_cast<TimeNs>(MonotonicNs()); }

// Throws nothing: the other requests depend on the thread.
void Answer(TextJob* job, const Status& error) noexcept {
  if (error.ok() || job->stream == nullptr) return;
  try {
    job->stream->SendError(error, true);
  } catch (const std::exception& e) {
    LogError(e.what());  // the stream answers when it goes
  }
}

Status CheckBound(int64_t have, int64_t more, const char* unit, const char* option, int64_t limit) {
  if (limit <= 0 || more <= limit - have) return Status::Ok();
  const std::string bound = std::string(option) + " = " + std::to_string(limit);
  if (more > limit) {
    return Status::InvalidArgument("QUERY (text_input): " + std::to_string(more) + " " + unit +
                                   " exceed " + bound);
  }
  return Status::Unavailable("the queue is full: " + std::to_string(have) + " " + unit +
                             " wait to be tokenized, " + std::to_string(more) +
                             " more would exceed " + bound);
}

}  // namespace

TextQueue::TextQueue(Options options) : options_(std::move(options)) {
  for (int i = 0; i < options_.num_threads; ++i) threads_.emplace_back([this] { Serve(); });
  watcher_ = std::thread([this] { Watch(); });
}

TextQueue::~TextQueue() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  watch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  watcher_.join();
}

void TextQueue::Stop(const std::string& id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [key, entry] : entries_) {
    if (entry.job.rest.has_value() && entry.job.rest->id() == id) *entry.job.stopped = true;
  }
  const auto [begin, end] = finishing_.equal_range(id);
  for (auto it = begin; it != end; ++it) *it->second = true;
}

TextQueueStats TextQueue::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  TextQueueStats stats = stats_;
  stats.prompts = load_.rows;
  return stats;
}

TextQueue::Load TextQueue::LoadUpTo(int32_t priority) const {
  Load load = load_;
  for (int c = priority + 1; c < kPriorityClasses; ++c) {
    load.Add(waiting_load_[static_cast<size_t>(c)], -1);
  }
  return load;
}

Status TextQueue::CheckBounds(const Load& more, const Load& have) const {
  const Status rows =
      CheckBound(have.rows, more.rows, "prompts", "max_queue_requests", options_.max_rows);
  if (!rows.ok()) return rows;
  return CheckBound(have.bytes, more.bytes, "bytes of inputs", "max_queue_bytes",
                    options_.max_bytes);
}

Status TextQueue::Add(TextJob* job, const Room& room) {
  const Load load = {static_cast<int64_t>(job->rows.size()), job->standing.sequences, job->bytes};
  const auto priority = static_cast<size_t>(job->standing.priority);
  const TimeNs deadline = job->standing.deadline;
  std::vector<TextJob> displaced;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return Status::Unavailable("the model is shutting down");
    const Load before = LoadUpTo(job->standing.priority);
    int64_t max_sequences = std::numeric_limits<int64_t>::max();  // of all in here, this one aside
    if (room) {
      const auto more = room(before.sequences);
      if (!more.ok()) return more.status();
      max_sequences =
          *more > max_sequences - before.sequences ? max_sequences : before.sequences + *more;
    }
    if (Status s = CheckBounds(load, before); !s.ok()) {
      if (s.code() == StatusCode::kUnavailable) ++stats_.rejected;
      return s;
    }
    displaced = Displace(load, max_sequences);
    stats_.displaced += displaced.size();
    const Key key = {job->arrival + job->standing.priority * kClassNs, next_++};
    Entry& entry = entries_[key];
    waiting_.insert(key);
    entry.job = std::move(*job);
    entry.load = load;
    load_.Add(load, 1);
    waiting_load_[priority].Add(load, 1);
    if (deadline < watch_at_) watch_.notify_one();
  }
  work_.notify_one();
  for (TextJob& other : displaced) Answer(&other, Status::Unavailable(kDisplaced));
  return Status::Ok();
}

// The youngest of the worst class first, until there is room. That there can be was checked.
std::vector<TextJob> TextQueue::Displace(const Load& more, int64_t max_sequences) {
  std::vector<TextJob> displaced;
  while (load_.sequences > max_sequences || !CheckBounds(more, load_).ok()) {
    const auto standing = [&](const Key& key) {
      return std::make_pair(entries_.at(key).job.standing.priority, key);
    };
    const Key worst =
        *std::max_element(waiting_.begin(), waiting_.end(),
                          [&](const Key& a, const Key& b) { return standing(a) < standing(b); });
    displaced.push_back(std::move(*Take(worst)));
  }
  return displaced;
}

void TextQueue::CountFinished(FinishReason reason) {
  ++stats_.finished[static_cast<size_t>(reason)];
}

void TextQueue::MarkBegun(Entry* entry) {
  entry->begun = true;
  waiting_load_[static_cast<size_t>(entry->job.standing.priority)].Add(entry->load, -1);
}

// Whoever takes a job answers it. Nothing: it was answered already.
std::optional<TextJob> TextQueue::Take(const Key& key) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return std::nullopt;
  Entry& entry = it->second;
  if (!entry.begun) MarkBegun(&entry);
  waiting_.erase(key);
  load_.Add(entry.load, -1);
  std::optional<TextJob> job = std::move(entry.job);
  entries_.erase(it);
  return job;
}

void TextQueue::Serve() {
  for (;;) {
    Key key;
    std::vector<TextRow> rows;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      work_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      key = *waiting_.begin();
      waiting_.erase(waiting_.begin());
      Entry& entry = entries_.at(key);
      MarkBegun(&entry);
      rows = std::move(entry.job.rows);
    }
    ServeOne(key, rows);
  }
}

void TextQueue::ServeOne(const Key& key, const std::vector<TextRow>& rows) noexcept {
  Status status;
  std::optional<TextJob> job;
  Load passed_on;
  auto finishing = finishing_.end();
  try {
    auto tokenized = options_.tokenize(rows);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job = Take(key);
      if (!job.has_value()) return;
      // Counted until it counts where it goes: for that moment twice, never not at all.
      passed_on = {static_cast<int64_t>(rows.size()), job->standing.sequences, job->bytes};
      load_.Add(passed_on, 1);
      if (job->rest.has_value()) finishing = finishing_.emplace(job->rest->id(), job->stopped);
    }
    status =
        tokenized.ok() ? options_.finish(&*job, std::move(tokenized).value()) : tokenized.status();
  } catch (const std::exception& e) {
    status = FromException("tokenizing a request", e);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    load_.Add(passed_on, -1);
    if (!status.ok()) CountFinished(FinishReason::kError);
    if (finishing != finishing_.end()) finishing_.erase(finishing);
    if (!job.has_value()) job = Take(key);  // not even tokenized
  }
  if (job.has_value()) Answer(&*job, status);
}

std::vector<std::pair<TextJob, Status>> TextQueue::TakeEnded(TimeNs now) {
  std::vector<std::pair<TextJob, Status>> ended;
  for (auto it = entries_.begin(); it != entries_.end();) {
    const Key key = it->first;
    const TextJob& job = (it++)->second.job;
    if (now >= job.standing.deadline) {
      ended.emplace_back(std::move(*Take(key)), Status::DeadlineExceeded(kDeadlinePassed));
      CountFinished(FinishReason::kDeadline);
    } else if (job.stream->cancelled()) {
      ended.emplace_back(std::move(*Take(key)), Status::Cancelled("the request was cancelled"));
      CountFinished(FinishReason::kCancelled);
    }
  }
  return ended;
}

void TextQueue::Watch() {
  const TimeNs period = TimeNs{options_.poll_period_ms} * 1'000'000;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    watch_at_ = Now() + period;
    for (const auto& [key, entry] : entries_) {
      watch_at_ = std::min(watch_at_, entry.job.standing.deadline);
    }
    watch_.wait_until(lock,
                      std::chrono::steady_clock::time_point(std::chrono::nanoseconds(watch_at_)));
    auto ended = TakeEnded(Now());
    lock.unlock();
    for (auto& [job, why] : ended) Answer(&job, why);
    ended.clear();
    lock.lock();
  }
}

TextQueue::Options QueueOptions(const ModelConfig& config, const TokenizeParameters& parameters,
                                const PromptTokenizer& tokenizer,
                                std::function<Status(TextJob*, std::vector<TokenizedRow>)> finish) {
  TextQueue::Options options;
  options.num_threads = config.instance_count;
  options.max_rows = parameters.max_queue_requests;
  options.max_bytes = parameters.max_queue_bytes;
  options.tokenize = [&tokenizer](const std::vector<TextRow>& rows) {
    return tokenizer.Tokenize(rows);
  };
  options.finish = std::move(finish);
  return options;
}

}  // namespace slipstream::triton
