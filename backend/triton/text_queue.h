// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "executor/admission.h"
#include "executor/event.h"
#include "executor/status.h"
#include "triton/prompt_tokenizer.h"
#include "triton/request_data.h"
#include "triton/request_reader.h"
#include "triton/response_stream.h"

namespace slipstream::triton {

// A request that is to be tokenized: its text, and what remains of it for later.
struct TextJob {
  std::unique_ptr<ResponseStream> stream;
  std::optional<RequestData> rest;  // refers to the stream's request
  std::vector<TextRow> rows;
  std::shared_ptr<void> keeps;  // whatever must live until it is answered
  // A stop request named it; may become true for as long as `finish` has it.
  std::shared_ptr<std::atomic<bool>> stopped = std::make_shared<std::atomic<bool>>(false);
  int64_t bytes = 0;  // of all the request's inputs
  TimeNs arrival = 0;
  Standing standing;
};

struct TextQueueStats {
  int64_t prompts = 0;  // that wait or are tokenized
  uint64_t rejected = 0;
  uint64_t displaced = 0;
  std::array<uint64_t, kNumFinishReasons> finished{};  // by FinishReason: requests answered in here
};

// Requests that wait to be tokenized, and the threads that see to it. Triton's queue before a model
// has no bound, knows neither deadlines nor priorities and tells nothing of clients that leave; so
// requests are taken from it at once and wait here.
//
// Served in the order of their arrival, a class later for every kClassNs. A full queue refuses,
// unless one of a worse class can give way. What expires or is cancelled is answered then, even
// while it is being tokenized; what the tokenizer makes of it is thrown away.
class TextQueue final {
 public:
  static constexpr TimeNs kClassNs = 5'000'000'000;

  struct Options {
    int num_threads = 1;
    int64_t max_rows = 0;   // that wait or are tokenized; 0: unlimited
    int64_t max_bytes = 0;  // of their inputs; 0: unlimited
    int poll_period_ms = 25;
    // Any thread of the queue.
    std::function<StatusOr<std::vector<TokenizedRow>>(const std::vector<TextRow>&)> tokenize;
    // Sees to the responses, unless it returns an error that it has not sent.
    std::function<Status(TextJob*, std::vector<TokenizedRow>)> finish;
  };

  explicit TextQueue(Options options);
  ~TextQueue();  // what still waits is served first
  TextQueue(const TextQueue&) = delete;
  TextQueue& operator=(const TextQueue&) = delete;

  // Of a queue behind this one, with which it counts together: whether there is room for a job's
  // sequences, with so many `ahead` of them in here, and for how many more. Called under a mutex.
  using Room = std::function<StatusOr<int64_t>(int64_t ahead)>;

  // Takes the job, or leaves it as it is and returns why: kUnavailable when the queue is full,
  // kInvalidArgument for one that not even an empty queue could hold, or what `room` says.
  Status Add(TextJob* job, const Room& room = {});

  TextQueueStats stats() const;

  // Marks what is in here under this client id, for `finish` to see. What has left by then is where
  // `finish` put it.
  void Stop(const std::string& id);

 private:
  using Key = std::pair<TimeNs, uint64_t>;
  struct Load {
    int64_t rows = 0;
    int64_t sequences = 0;
    int64_t bytes = 0;
    void Add(const Load& other, int sign) {
      rows += sign * other.rows;
      sequences += sign * other.sequences;
      bytes += sign * other.bytes;
    }
  };
  struct Entry {
    TextJob job;  // without its rows once it has begun
    Load load;
    bool begun = false;
  };

  void Serve();
  void ServeOne(const Key& key, const std::vector<TextRow>& rows) noexcept;
  void Watch();
  // These need mutex_.
  Load LoadUpTo(int32_t priority) const;
  Status CheckBounds(const Load& more, const Load& have) const;
  std::vector<TextJob> Displace(const Load& more, int64_t max_sequences);
  std::vector<std::pair<TextJob, Status>> TakeEnded(TimeNs now);
  std::optional<TextJob> Take(const Key& key);
  void MarkBegun(Entry* entry);
  void CountFinished(FinishReason reason);

  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable work_;   // something waits, or the end
  std::condition_variable watch_;  // a deadline before watch_at_, or the end
  // All guarded by mutex_.
  std::map<Key, Entry> entries_;  // not answered yet, begun or not
  std::set<Key> waiting_;         // of them, not begun
  Load load_;                     // of all entries, and of what `finish` has
  std::array<Load, kPriorityClasses> waiting_load_{};
  std::multimap<std::string, std::shared_ptr<std::atomic<bool>>> finishing_;  // `finish` has them
  TextQueueStats stats_;                                                      // all but `prompts`
  uint64_t next_ = 0;
  TimeNs watch_at_ = 0;
  bool stopping_ = false;

  std::vector<std::thread> threads_;
  std::thread watcher_;
};

// The queue of a model that tokenizes: as many threads as it has instances.
TextQueue::Options QueueOptions(const ModelConfig& config, const TokenizeParameters& parameters,
                                const PromptTokenizer& tokenizer,
                                std::function<Status(TextJob*, std::vector<TokenizedRow>)> finish);

}  // namespace slipstream::triton
