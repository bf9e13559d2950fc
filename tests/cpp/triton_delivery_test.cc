// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "triton/delivery.h"
#include "triton/delivery_lanes.h"
#include "triton_host.h"

namespace slipstream::triton {
namespace {

// What one stream's client got; can hold the delivery thread up inside a send.
class FakeClient {
 public:
  struct Item {
    std::vector<int32_t> tokens;
    size_t num_outputs = 0;
    Status error;
    bool final = false;
  };

  void Put(Item item) {
    std::unique_lock<std::mutex> lock(mutex_);
    items_.push_back(std::move(item));
    changed_.notify_all();
    changed_.wait(lock, [this] { return !blocked_; });
  }
  void Block(bool blocked) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocked_ = blocked;
    changed_.notify_all();
  }
  std::vector<Item> WaitFor(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool enough =
        changed_.wait_for(lock, std::chrono::seconds(20), [&] { return items_.size() >= count; });
    REQUIRE(enough);
    return items_;
  }
  size_t size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return items_.size();
  }

  std::atomic<bool> gone{false};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Item> items_;
  bool blocked_ = false;
};

class FakeChannel final : public ResponseChannel {
 public:
  explicit FakeChannel(std::shared_ptr<FakeClient> client) : client_(std::move(client)) {}
  void Send(const std::vector<OutputTensor>& outputs, bool final) override {
    FakeClient::Item item;
    item.num_outputs = outputs.size();
    item.final = final;
    if (!outputs.empty()) {
      const std::string& ids = outputs[0].data;
      item.tokens.resize(ids.size() / sizeof(int32_t));
      if (!ids.empty()) std::memcpy(item.tokens.data(), ids.data(), ids.size());
    }
    client_->Put(std::move(item));
  }
  void SendError(const Status& error, bool final) override {
    FakeClient::Item item;
    item.error = error;
    item.final = final;
    client_->Put(std::move(item));
  }
  bool cancelled() override { return client_->gone; }

 private:
  const std::shared_ptr<FakeClient> client_;
};

struct Fixture {
  explicit Fixture(int32_t window = 2) : delivery(Delivery::Create()) {
    delivery->Start({5, window, [this](RequestHandle handle) {
                       const std::lock_guard<std::mutex> lock(mutex);
                       cancelled.push_back(handle.id);
                       changed.notify_all();
                     }});
  }
  ~Fixture() { delivery->Stop(); }

  std::shared_ptr<LlmStream> Open(const ResponsePlan& plan) {
    auto stream = std::make_shared<LlmStream>(std::make_unique<FakeChannel>(client), plan);
    delivery->Add(stream);
    for (int32_t row = 0; row < plan.batch; ++row) {
      delivery->SetHandle(stream, row, {static_cast<RequestId>(100 + row)});
    }
    return stream;
  }
  void Post(const std::shared_ptr<LlmStream>& stream, std::vector<int32_t> tokens,
            FinishReason reason = FinishReason::kNone, Status error = Status::Ok(),
            int32_t row = 0) {
    Event event;
    event.tokens = std::move(tokens);
    event.reason = reason;
    event.request_done = reason != FinishReason::kNone;
    event.error = std::move(error);
    event.context = std::make_shared<LlmContext>(stream, row);
    std::vector<Event> events;
    events.push_back(std::move(event));
    delivery->OnEvents(std::move(events));
  }
  std::vector<RequestId> WaitCancelled(size_t count) {
    std::unique_lock<std::mutex> lock(mutex);
    const bool enough =
        changed.wait_for(lock, std::chrono::seconds(20), [&] { return cancelled.size() >= count; });
    REQUIRE(enough);
    return cancelled;
  }
  void WaitIdle() {
    for (int i = 0; i < 20000 && delivery->num_live() > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(delivery->num_live() == 0);
  }

  std::shared_ptr<FakeClient> client = std::make_shared<FakeClient>();
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<RequestId> cancelled;
  std::shared_ptr<Delivery> delivery;
};

ResponsePlan Streaming() {
  ResponsePlan plan;
  plan.streaming = true;
  return plan;
}

TEST_CASE("delivery: one response per event while the client keeps up, the last one is final") {
  Fixture f;
  const auto stream = f.Open(Streaming());
  f.Post(stream, {1});
  f.client->WaitFor(1);
  f.Post(stream, {2, 3}, FinishReason::kStop);
  const auto items = f.client->WaitFor(2);
  CHECK(items[0].tokens == std::vector<int32_t>{1});
  CHECK_FALSE(items[0].final);
  CHECK(items[1].tokens == std::vector<int32_t>{2, 3});
  CHECK(items[1].final);
  f.WaitIdle();
}

TEST_CASE("delivery: tokens of a slow client come together, in order") {
  Fixture f;
  const auto stream = f.Open(Streaming());
  f.client->Block(true);
  f.Post(stream, {1});
  f.client->WaitFor(1);  // the thread is held inside the first send
  for (int32_t token = 2; token < 100; ++token) f.Post(stream, {token});
  f.Post(stream, {100}, FinishReason::kLength);
  f.client->Block(false);
  const auto items = f.client->WaitFor(2);
  REQUIRE(items.size() == 2);
  REQUIRE(items[1].tokens.size() == 99);
  for (int32_t i = 0; i < 99; ++i) CHECK(items[1].tokens[static_cast<size_t>(i)] == i + 2);
  CHECK(items[1].final);
}

TEST_CASE("delivery: a full window holds a stream until it is acknowledged") {
  Fixture f(/*window=*/2);
  ResponsePlan plan = Streaming();
  plan.piped = true;
  const auto stream = f.Open(plan);
  const uint64_t handle = stream->plan.flow;
  CHECK(handle != 0);
  const auto flow = FlowRegistry::Instance().Find(handle);
  REQUIRE(static_cast<bool>(flow));
  f.Post(stream, {1});
  f.client->WaitFor(1);
  flow->OnAcknowledged();
  for (int32_t token = 2; token <= 3; ++token) {
    f.Post(stream, {token});
    f.client->WaitFor(static_cast<size_t>(token));
  }
  f.Post(stream, {4});
  f.Post(stream, {5});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // time for a wrong send
  CHECK(f.client->size() == 3);
  flow->OnAcknowledged();
  const auto items = f.client->WaitFor(4);
  CHECK(items[3].tokens == std::vector<int32_t>{4, 5});
  // The last response does not wait, although the window is full again.
  f.Post(stream, {6}, FinishReason::kStop);
  CHECK(f.client->WaitFor(5)[4].final);
  f.WaitIdle();
  CHECK_FALSE(static_cast<bool>(FlowRegistry::Instance().Find(handle)));
}

TEST_CASE("delivery: lost acknowledgements hold a stream for a second at most") {
  Fixture f(/*window=*/1);
  ResponsePlan plan = Streaming();
  plan.piped = true;
  const auto stream = f.Open(plan);
  f.Post(stream, {1});
  f.client->WaitFor(1);
  f.delivery->Acknowledge(stream);
  f.Post(stream, {2});
  f.client->WaitFor(2);
  f.Post(stream, {3});
  CHECK(f.client->WaitFor(3)[2].tokens == std::vector<int32_t>{3});
  f.Post(stream, {}, FinishReason::kStop);
  f.client->WaitFor(4);
}

TEST_CASE("delivery: a client that went away has its rows cancelled, and one final error") {
  Fixture f;
  ResponsePlan plan = Streaming();
  plan.batch = 2;
  const auto stream = f.Open(plan);
  f.client->gone = true;
  CHECK(f.WaitCancelled(2) == std::vector<RequestId>{100, 101});
  f.Post(stream, {7});  // generated before the cancellation got through: nobody reads it
  f.Post(stream, {}, FinishReason::kCancelled, Status::Cancelled("x"), 0);
  f.Post(stream, {}, FinishReason::kCancelled, Status::Cancelled("x"), 1);
  f.WaitIdle();
  const auto items = f.client->WaitFor(1);
  size_t finals = 0;
  for (const auto& item : items) {
    CHECK(item.error.code() == StatusCode::kCancelled);
    if (item.final) ++finals;
  }
  CHECK(finals == 1);
  CHECK(items.back().final);
  CHECK(f.cancelled.size() == 2);  // and only once each
}

TEST_CASE("delivery: what a client that went away was not sent is never called complete") {
  for (const bool piped : {false, true}) {
    Fixture f;
    ResponsePlan plan = Streaming();
    plan.piped = piped;
    const auto stream = f.Open(plan);
    f.client->gone = true;
    CHECK(f.WaitCancelled(1) == std::vector<RequestId>{100});
    f.Post(stream, {1, 2});
    // Streams take turns: when another one has got its response, this one's was not sent.
    const auto other = std::make_shared<FakeClient>();
    const auto marker =
        std::make_shared<LlmStream>(std::make_unique<FakeChannel>(other), Streaming());
    f.delivery->Add(marker);
    f.Post(marker, {}, FinishReason::kLength);
    other->WaitFor(1);
    // Its natural end was on its way before the cancellation.
    f.Post(stream, {3}, FinishReason::kLength);
    f.WaitIdle();
    const auto items = f.client->WaitFor(1);
    CHECK(items.size() == 1);
    CHECK(items[0].error.code() == (piped ? StatusCode::kOk : StatusCode::kCancelled));
    CHECK(items[0].tokens.empty());
    CHECK(items[0].final);
  }
}

TEST_CASE("delivery: a client that left before the handle was known is cancelled all the same") {
  Fixture f;
  auto stream = std::make_shared<LlmStream>(std::make_unique<FakeChannel>(f.client), Streaming());
  f.delivery->Add(stream);
  f.delivery->Cancel(stream);
  CHECK(f.cancelled.empty());
  f.delivery->SetHandle(stream, 0, {42});
  CHECK(f.WaitCancelled(1) == std::vector<RequestId>{42});
  f.Post(stream, {}, FinishReason::kCancelled, Status::Cancelled("x"));
  f.WaitIdle();
}

TEST_CASE("delivery: a stop request ends a stream with an empty success") {
  Fixture f;
  const auto stream = f.Open(Streaming());
  f.client->Block(true);
  f.Post(stream, {1});
  f.client->WaitFor(1);
  f.Post(stream, {2});
  f.Post(stream, {}, FinishReason::kCancelled, Status::Cancelled("stopped"));
  f.client->Block(false);
  const auto items = f.client->WaitFor(3);
  CHECK(items[1].tokens == std::vector<int32_t>{2});
  CHECK_FALSE(items[1].final);
  CHECK(items[2].num_outputs == 0);
  CHECK(items[2].error.ok());
  CHECK(items[2].final);
}

TEST_CASE("delivery: errors follow what was generated") {
  Fixture f;
  const auto stream = f.Open(Streaming());
  f.Post(stream, {1}, FinishReason::kDeadline, Status::DeadlineExceeded("too late"));
  const auto items = f.client->WaitFor(2);
  CHECK(items[0].tokens == std::vector<int32_t>{1});
  CHECK(items[1].error.message() == "too late");
  CHECK(items[1].final);
}

TEST_CASE("delivery: in an ensemble an error comes last, alone, and after all acknowledgements") {
  Fixture f(/*window=*/8);
  ResponsePlan plan = Streaming();
  plan.piped = true;
  plan.batch = 2;
  const auto stream = f.Open(plan);
  f.Post(stream, {1}, FinishReason::kNone, Status::Ok(), 1);
  f.client->WaitFor(1);
  f.Post(stream, {2}, FinishReason::kError, Status::Internal("first"), 0);
  CHECK(f.client->WaitFor(2)[1].tokens == std::vector<int32_t>{2});
  f.Post(stream, {}, FinishReason::kDeadline, Status::DeadlineExceeded("second"), 1);
  f.delivery->Acknowledge(stream);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // time for a wrong send
  CHECK(f.client->size() == 2);
  f.delivery->Acknowledge(stream);
  const auto items = f.client->WaitFor(3);
  CHECK(items[2].error.message() == "first");
  CHECK(items[2].final);
  f.WaitIdle();
  CHECK(f.client->size() == 3);
}

TEST_CASE("delivery: in an ensemble the end for a client that left is a success") {
  Fixture f;
  ResponsePlan plan = Streaming();
  plan.piped = true;
  const auto stream = f.Open(plan);
  f.delivery->Cancel(stream);
  f.Post(stream, {}, FinishReason::kCancelled, Status::Cancelled("x"));
  const auto items = f.client->WaitFor(1);
  CHECK(items[0].error.ok());
  CHECK(items[0].num_outputs == 3);  // no tokens, length 0, and the flow handle
  CHECK(items[0].final);
}

TEST_CASE("delivery: refused rows and served rows share one final response") {
  Fixture f;
  ResponsePlan plan;
  plan.batch = 2;
  const auto stream = f.Open(plan);
  f.delivery->Fail(stream, 0, Status::InvalidArgument("bad row"));
  const auto first = f.client->WaitFor(1);
  CHECK(first[0].error.message() == "bad row");
  CHECK_FALSE(first[0].final);
  f.Post(stream, {9}, FinishReason::kStop, Status::Ok(), 1);
  const auto items = f.client->WaitFor(2);
  CHECK(items[1].tokens == std::vector<int32_t>{9});
  CHECK(items[1].final);
}

TEST_CASE("delivery: what is still live at the end gets an error") {
  auto client = std::make_shared<FakeClient>();
  {
    Fixture f;
    f.client = client;
    f.Open(Streaming());
  }
  const auto items = client->WaitFor(1);
  CHECK(items[0].error.code() == StatusCode::kUnavailable);
  CHECK(items[0].final);
}

TEST_CASE("delivery: streams keep their lane and their order, whatever the number of lanes") {
  constexpr int32_t kStreams = 7, kTokens = 200;
  for (const size_t count : {1, 3}) {
    DeliveryLanes lanes(count);
    lanes.Start({5, 2, [](RequestHandle) {}});
    std::vector<std::shared_ptr<FakeClient>> clients;
    std::vector<std::shared_ptr<LlmStream>> streams;
    for (int32_t i = 0; i < kStreams; ++i) {
      clients.push_back(std::make_shared<FakeClient>());
      auto channel = std::make_unique<FakeChannel>(clients.back());
      streams.push_back(std::make_shared<LlmStream>(std::move(channel), Streaming()));
      lanes.Add(streams.back()).SetHandle(streams.back(), 0, {static_cast<RequestId>(i + 1)});
      CHECK(streams.back()->lane == static_cast<size_t>(i) % count);
    }
    CHECK(lanes.num_live() == kStreams);
    // A lane that is held up by its client holds up no other.
    clients[0]->Block(true);
    for (int32_t token = 0; token < kTokens; ++token) {
      std::vector<Event> events;
      for (const auto& stream : streams) {
        Event event;
        event.tokens = {token};
        event.request_done = token + 1 == kTokens;
        event.reason = event.request_done ? FinishReason::kLength : FinishReason::kNone;
        event.context = std::make_shared<LlmContext>(stream, 0);
        events.push_back(std::move(event));
      }
      lanes.OnEvents(std::move(events));
    }
    const auto finished = [](const std::shared_ptr<FakeClient>& client) {
      std::vector<int32_t> tokens;
      for (size_t seen = 1;; ++seen) {
        const auto items = client->WaitFor(seen);
        const auto& item = items[seen - 1];
        tokens.insert(tokens.end(), item.tokens.begin(), item.tokens.end());
        if (item.final) return tokens;
      }
    };
    std::vector<int32_t> expected(kTokens);
    std::iota(expected.begin(), expected.end(), 0);
    if (count > 1) CHECK(finished(clients[1]) == expected);
    clients[0]->Block(false);
    for (const auto& client : clients) CHECK(finished(client) == expected);
    lanes.Stop();
    CHECK(lanes.num_live() == 0);
  }
}

}  // namespace
}  // namespace slipstream::triton
