// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "executor/event.h"
#include "executor/executor.h"
#include "triton/flow_registry.h"
#include "triton/response_plan.h"
#include "triton/response_stream.h"

namespace slipstream::triton {

// One Triton request of role `llm` on its way back to the client: one executor request per row, all
// answered through one channel. Made by the instance's thread, then Delivery's.
struct LlmStream {
  LlmStream(std::unique_ptr<ResponseChannel> response_channel, ResponsePlan response_plan)
      : channel(std::move(response_channel)),
        plan(std::move(response_plan)),
        rows(static_cast<size_t>(plan.batch)),
        rows_left(plan.batch) {}

  const std::unique_ptr<ResponseChannel> channel;  // delivery thread
  size_t lane = 0;                                 // of DeliveryLanes; constant once it is there
  ResponsePlan plan;                               // constant once delivery knows the stream
  std::map<std::pair<int32_t, int32_t>, std::string> texts;  // delivery thread; see WholeText
  bool skipped = false;  // delivery thread; the client was gone, and something was not sent

  // All text so far of a sequence, by row and index, this event's included: once per event.
  const std::string& WholeText(int32_t row, const Event& event) {
    return texts[{row, event.sequence_index}] += event.text;
  }

  struct Row {
    RequestHandle handle;
    bool accepted = false;
  };
  struct Pending {
    int32_t row = 0;
    Event event;
  };

  // Guarded by Delivery's mutex.
  std::vector<Row> rows;
  int32_t rows_left;             // whose last event has not come
  std::vector<Pending> pending;  // not sent yet: at most one per row and sequence
  bool queued = false;           // in Delivery's list of streams with something to send
  bool cancelled = false;        // the client is gone
  bool ended = false;            // the final response is sent
  Status error;                  // of an ensemble's stream, held back to be its last response
  size_t live_index = 0;         // its place in Delivery's list of live streams

  // Flow control, guarded likewise: it applies once a response was acknowledged.
  std::shared_ptr<FlowListener> flow;  // the registry only refers to it
  uint64_t sent = 0;
  uint64_t acknowledged = 0;
  bool stalled = false;  // something is pending, the window is full
  TimeNs stalled_since = 0;
};

// What a request carries through the executor.
struct LlmContext final : ClientContext {
  LlmContext(std::shared_ptr<LlmStream> of, int32_t row_index)
      : stream(std::move(of)), row(row_index) {}
  const std::shared_ptr<LlmStream> stream;
  const int32_t row;
};

}  // namespace slipstream::triton
