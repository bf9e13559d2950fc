// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "executor/engine.h"
#include "executor/kv_groups.h"
#include "input_bytes.h"
#include "targets.h"
#include "worker_hello.h"
#include "worker_link/channel.h"
#include "worker_link/worker_messages.h"

namespace slipstream::fuzz {
namespace {

using nlohmann::json;

// What a HELLO says must do for an Engine, unless CheckKvGroups finds fault with it.
void TryEngine(const WorkerInfo& info) {
  const ExecutorConfig config;
  if (!CheckKvGroups(info, config).ok()) return;
  for (const KvGroup& group : info.kv_groups) {
    if (group.num_blocks > 100000) return;  // in order, but the fuzzer has little memory
  }
  Engine engine(config, info, nullptr);
  RequestSpec spec;
  spec.prompt = {0};
  spec.max_new_tokens = 1;
  auto request = Request::Create(spec, engine.limits());
  if (!request.ok() || !engine.Submit(1, std::move(*request), 1).ok()) return;
  StepPlan plan;
  Require(engine.BuildStep(2, &plan), "a request that fits is begun");
  Require(engine.CheckIntegrity().empty(), engine.CheckIntegrity());
}

void Run(const uint8_t* data, size_t size) {
  const auto map = ParseMap({FrameType::kHello, data, size});
  if (!map.ok()) return;
  std::vector<uint64_t> counts(6, 1);
  if (AddWorkerStats(*map, &counts).ok()) {
    Require(map->at("expert_tokens").get_binary().size() == 48, "as many counts as there are");
  }
  const auto info = ParseWorkerHello(*map);
  if (!info.ok()) {
    Require(info.status().code() == StatusCode::kInternal, "a wrong HELLO is our fault");
    return;
  }
  Require(info->vocab_size >= 1 && info->max_seq_len >= 1 && info->tokens_per_block >= 1, "sizes");
  Require(!info->kv_groups.empty(), "there is a group");
  Require(info->pad_id >= -1 && info->weight_bytes >= 0, "ids and bytes");
  TryEngine(*info);
}

std::string Packed(const json& map) {
  const std::vector<uint8_t> bytes = json::to_msgpack(map);
  return {bytes.begin(), bytes.end()};
}

std::vector<std::string> Seeds() {
  json hello = WorkerHello();
  std::vector<std::string> seeds = {Packed(hello)};
  hello["kv_groups"] = json::array({GroupMap("full", 0, 64)});
  hello["expert_layers"] = json::array();
  hello["num_experts"] = 0;
  seeds.push_back(Packed(hello));
  seeds.push_back(Packed({{"expert_tokens", json::binary(std::vector<uint8_t>(48))}}));
  return seeds;
}

}  // namespace

FuzzTarget WorkerMapsTarget() { return {"worker_maps", Run, Seeds}; }

}  // namespace slipstream::fuzz
