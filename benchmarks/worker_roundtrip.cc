// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// What the step link adds to a step: from Send to the decoded result, with a Python worker that
// has no model, for decode steps of several sizes; and the rate of a ScriptedWorker.
//   python benchmarks/echo_worker.py is started by it: pass the interpreter.
//   build/release/bench_worker_roundtrip .venv/bin/python benchmarks/echo_worker.py
#include <poll.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "worker_link/channel.h"
#include "worker_link/process_worker.h"
#include "worker_link/scripted_worker.h"

namespace slipstream {
namespace {

StepPlan DecodeStep(uint64_t step_id, uint32_t num_seqs) {
  StepPlan plan;
  plan.step_id = step_id;
  for (uint32_t i = 0; i < num_seqs; ++i) {
    plan.slot.push_back(i);
    plan.num_tokens.push_back(1);
    plan.first_position.push_back(static_cast<uint32_t>(step_id) - 1);
    plan.num_new_blocks.push_back(0);
    plan.flags.push_back(kSeqSample);
    plan.token_ids.push_back(kTokenFromSlot);
  }
  return plan;
}

bool Await(WorkerPort* worker, StepResult* result) {
  std::string why;
  for (;;) {
    switch (worker->Receive(result, &why)) {
      case WorkerPort::Reply::kResult:
        return true;
      case WorkerPort::Reply::kFailed:
        std::fprintf(stderr, "%s\n", why.c_str());
        return false;
      case WorkerPort::Reply::kNone: {
        pollfd poll_fd{worker->fd(), POLLIN, 0};
        ::poll(&poll_fd, 1, 10000);
      }
    }
  }
}

bool MeasureRoundTrips(ProcessWorker* worker, uint32_t num_seqs, uint64_t* step_id) {
  constexpr int kWarmUp = 200, kSteps = 5000;
  std::vector<double> micros;
  StepResult result;
  for (int i = 0; i < kWarmUp + kSteps; ++i) {
    const StepPlan plan = DecodeStep(++*step_id, num_seqs);
    const int64_t begin_ns = MonotonicNs();
    if (!worker->Send(plan).ok() || !Await(worker, &result)) return false;
    if (i >= kWarmUp) micros.push_back(static_cast<double>(MonotonicNs() - begin_ns) / 1000);
  }
  std::sort(micros.begin(), micros.end());
  std::printf("round trip, %3u sequences: median %.1f us, p99 %.1f us\n", num_seqs,
              micros[micros.size() / 2], micros[micros.size() * 99 / 100]);
  return true;
}

// Two steps in flight, as the Executor has them.
bool MeasureScripted(uint32_t num_seqs) {
  constexpr uint64_t kSteps = 20000;
  ScriptedWorkerConfig config;
  config.max_seq_len = 1 << 20;
  config.num_blocks = static_cast<int32_t>(num_seqs * (kSteps / 32 + 1));
  ScriptedWorker worker(config);
  if (!worker.Start(nullptr).ok()) return false;
  int32_t next_block = 0;
  const auto step = [&](uint64_t step_id) {
    StepPlan plan = DecodeStep(step_id, num_seqs);
    for (uint32_t i = 0; i < num_seqs && step_id == 1; ++i) {
      AdmitRecord record{};
      record.slot = i;
      record.flags = kAdmitHistory;
      record.num_logprobs = -1;
      record.prompt_len = 1;
      record.history_offset = i;
      record.history_len = 1;
      plan.admitted.push_back(record);
      plan.aux.push_back(5);
      plan.token_ids[i] = 5;
    }
    for (uint32_t i = 0; i < num_seqs && step_id % 32 == 1; ++i) {
      plan.num_new_blocks[i] = 1;
      plan.new_block_ids.push_back(next_block++);
    }
    return worker.Send(plan).ok();
  };
  StepResult result;
  const int64_t begin_ns = MonotonicNs();
  if (!step(1)) return false;
  for (uint64_t id = 2; id <= kSteps; ++id) {
    if (!step(id) || !Await(&worker, &result)) return false;
  }
  if (!Await(&worker, &result)) return false;
  const double seconds = static_cast<double>(MonotonicNs() - begin_ns) * 1e-9;
  std::printf("scripted worker, %3u sequences: %.0f tokens/s\n", num_seqs,
              static_cast<double>(kSteps * num_seqs) / seconds);
  return true;
}

int Main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s PYTHON ECHO_WORKER_PY\n", argv[0]);
    return 2;
  }
  ProcessWorkerConfig config;
  config.python = argv[1];
  config.args = {argv[2]};
  ProcessWorker worker(config);
  const auto info = worker.Start(nullptr);
  if (!info.ok()) {
    std::fprintf(stderr, "%s\n", info.status().message().c_str());
    return 1;
  }
  uint64_t step_id = 0;
  for (const uint32_t num_seqs : {1u, 8u, 64u, 256u}) {
    if (!MeasureRoundTrips(&worker, num_seqs, &step_id)) return 1;
  }
  for (const uint32_t num_seqs : {1u, 64u}) {
    if (!MeasureScripted(num_seqs)) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace slipstream

int main(int argc, char** argv) { return slipstream::Main(argc, argv); }
