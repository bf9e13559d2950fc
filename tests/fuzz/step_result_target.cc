// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "executor/engine.h"
#include "input_bytes.h"
#include "targets.h"
#include "worker_link/scripted_model.h"
#include "worker_link/step_codec.h"

namespace slipstream::fuzz {
namespace {

ScriptedWorkerConfig WorkerConfig() {
  ScriptedWorkerConfig config;
  config.vocab_size = 40;
  config.max_seq_len = 64;
  config.num_blocks = 32;
  config.tokens_per_block = 4;
  config.emit = EmitRule::kCount;
  config.count_start = 7;
  return config;
}

// Logits are most of an answer's bytes: without them mutations meet the rest of it.
RequestSpec Spec(int number, bool logits) {
  RequestSpec spec;
  spec.prompt = {1, 2, 3 + number};
  spec.max_new_tokens = 3;
  spec.streaming = number != 1;
  spec.num_logprobs = number == 0 ? 2 : -1;
  spec.return_context_logits = logits && number == 1;
  spec.return_generation_logits = logits && number == 2;
  return spec;
}

// An Engine with three requests of different kinds, and the model that answers it.
struct Serving {
  ScriptedModel model{WorkerConfig()};
  Engine engine{ExecutorConfig(), model.Info(), nullptr};
  TimeNs now = 1;

  explicit Serving(bool logits) {
    for (int i = 0; i < 3; ++i) {
      auto request = Request::Create(Spec(i, logits), engine.limits());
      Require(request.ok() && engine.Submit(i + 1, std::move(*request), ++now).ok(), "it fits");
    }
  }
  void Check() { Require(engine.CheckIntegrity().empty(), engine.CheckIntegrity()); }
};

// RESULT payloads as the step codec reads them; the mirror of StepEncoder for the other side.
std::string Payload(const StepResult& r) {
  const ResultHeader header{r.step_id,
                            r.start_ns,
                            r.end_ns,
                            r.logits.size(),
                            static_cast<uint32_t>(r.slot.size()),
                            static_cast<uint32_t>(r.tokens.size()),
                            static_cast<uint32_t>(r.logprob_ids.size()),
                            0};
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  const auto add = [&bytes](const auto& values) {
    bytes.resize(AlignFrameArray(bytes.size()));
    bytes += BytesOf(values);
  };
  add(r.slot), add(r.status), add(r.num_tokens), add(r.logprob_width), add(r.context_rows);
  add(r.generation_rows), add(r.tokens), add(r.logprob_ids), add(r.logprob_values), add(r.logits);
  return bytes;
}

// The worker's answers come from the input for as long as it has some. The Executor takes what does
// not fit for a worker that died; then a good one serves all requests to their ends.
void Run(const uint8_t* data, size_t size) {
  InputBytes in(data, size);
  Serving serving(in.Below(2) == 1);
  StepPlan plan;
  size_t ended = 0;
  const auto drain = [&] {
    for (const Event& event : serving.engine.TakeEvents()) ended += event.request_done ? 1 : 0;
  };
  while (!in.empty() && serving.engine.BuildStep(++serving.now, &plan)) {
    const std::string payload = in.Text();
    StepResult result;
    const SentStep sent{plan.step_id, plan.slot};
    Status status = DecodeResult(reinterpret_cast<const uint8_t*>(payload.data()), payload.size(),
                                 sent, &result);
    Require(status.ok() || status.code() == StatusCode::kInternal, "a wrong answer is our fault");
    if (status.ok()) status = serving.engine.OnResult(result, ++serving.now);
    if (!status.ok()) break;
    serving.Check();
    drain();
  }
  serving.engine.OnWorkerLost(Status::Internal("lost"), ++serving.now);
  serving.Check();
  serving.model.Reset();
  for (int i = 0; i < 200 && !serving.engine.idle(); ++i) {
    if (!serving.engine.BuildStep(++serving.now, &plan)) break;
    const auto result = serving.model.Run(plan);
    Require(result.ok(), result.status().message());
    const Status status = serving.engine.OnResult(*result, ++serving.now);
    Require(status.ok(), status.message());
    serving.Check();
    drain();
  }
  drain();
  Require(serving.engine.idle() && ended == 3, "every request ends once");
}

// The answers that a good worker gives.
std::vector<std::string> Seeds() {
  std::vector<std::string> seeds;
  for (const bool logits : {false, true}) {
    Serving serving(logits);
    OutputBytes all;
    all.Byte(logits ? 1 : 0);
    StepPlan plan;
    while (serving.engine.BuildStep(++serving.now, &plan)) {
      auto result = serving.model.Run(plan);
      all.Text(Payload(*result));
      seeds.push_back(all.bytes());
      Require(serving.engine.OnResult(*result, ++serving.now).ok(), "a good answer is taken");
    }
  }
  return seeds;
}

}  // namespace

FuzzTarget StepResultTarget() { return {"step_result", Run, Seeds}; }

}  // namespace slipstream::fuzz
