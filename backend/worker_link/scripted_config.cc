// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/scripted_config.h"

#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "worker_link/bounded_json.h"

namespace slipstream {
namespace {

using nlohmann::json;
using Setter = std::function<Status(const std::string& key, const json& value)>;

Status Wrong(const std::string& key, const json& value, const std::string& expected) {
  return Status::InvalidArgument("scripted worker: " + key + " is " + value.dump() + ", expected " +
                                 expected);
}

template <typename T>
Setter Integer(T* target, int64_t low, int64_t high) {
  return [=](const std::string& key, const json& value) {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) &&
                      value.get<int64_t>() >= low && value.get<int64_t>() <= high;
    if (!fits) {
      return Wrong(key, value,
                   "an integer between " + std::to_string(low) + " and " + std::to_string(high));
    }
    *target = static_cast<T>(value.get<int64_t>());
    return Status::Ok();
  };
}

Setter Text(std::string* target) {
  return [=](const std::string& key, const json& value) {
    if (!value.is_string()) return Wrong(key, value, "a string");
    *target = value.get<std::string>();
    return Status::Ok();
  };
}

Setter Ids(std::vector<int32_t>* target) {
  return [=](const std::string& key, const json& value) {
    if (!value.is_array()) return Wrong(key, value, "a list of token ids");
    target->assign(value.size(), 0);
    for (size_t i = 0; i < value.size(); ++i) {
      const Status status = Integer(&(*target)[i], 0, std::numeric_limits<int32_t>::max())(
          key + "[" + std::to_string(i) + "]", value[i]);
      if (!status.ok()) return status;
    }
    return Status::Ok();
  };
}

constexpr int64_t kInt = std::numeric_limits<int32_t>::max();
constexpr int64_t kLong = int64_t{1} << 52;
constexpr int64_t kMaxBlocks = 1 << 24;

Setter Kind(KvKind* target) {
  return [=](const std::string& key, const json& value) {
    if (value.is_string() && KvKindFromName(value.get<std::string>(), target)) return Status::Ok();
    return Wrong(key, value, R"("full", "sliding" or "chunked")");
  };
}

// Calls the setter of every key of the map; messages name the key after `prefix`.
Status SetAll(const std::map<std::string, Setter>& setters, const json& map,
              const std::string& prefix) {
  for (const auto& [key, value] : map.items()) {
    const auto setter = setters.find(key);
    if (setter == setters.end()) {
      return Status::InvalidArgument("scripted worker: unknown key '" + prefix + key + "'");
    }
    const Status status = setter->second(prefix + key, value);
    if (!status.ok()) return status;
  }
  return Status::Ok();
}

Setter Groups(std::vector<KvGroup>* target) {
  return [=](const std::string& key, const json& value) {
    if (!value.is_array()) return Wrong(key, value, "a list of groups");
    target->assign(value.size(), {});
    for (size_t i = 0; i < value.size(); ++i) {
      const std::string name = key + "[" + std::to_string(i) + "]";
      if (!value[i].is_object()) return Wrong(name, value[i], "a map");
      KvGroup& group = (*target)[i];
      const Status status = SetAll({{"kind", Kind(&group.kind)},
                                    {"window", Integer(&group.window, 1, kInt)},
                                    {"num_blocks", Integer(&group.num_blocks, 1, kMaxBlocks)},
                                    {"bytes_per_block", Integer(&group.bytes_per_block, 0, kLong)}},
                                   value[i], name + ".");
      if (!status.ok()) return status;
    }
    return Status::Ok();
  };
}

Setter Rule(EmitRule* target) {
  return [=](const std::string& key, const json& value) {
    static const std::map<std::string, EmitRule> kRules = {{"echo", EmitRule::kEcho},
                                                           {"count", EmitRule::kCount},
                                                           {"constant", EmitRule::kConstant},
                                                           {"seeded", EmitRule::kSeeded}};
    const auto rule = value.is_string() ? kRules.find(value.get<std::string>()) : kRules.end();
    if (rule == kRules.end())
      return Wrong(key, value, R"("echo", "count", "constant" or "seeded")");
    *target = rule->second;
    return Status::Ok();
  };
}

Setter FileContents(std::string* target) {
  return [=](const std::string& key, const json& value) {
    if (!value.is_string()) return Wrong(key, value, "the path of a file");
    std::ifstream file(value.get<std::string>(), std::ios::binary);
    target->assign(std::istreambuf_iterator<char>(file), {});
    return file.good() || file.eof() ? Status::Ok() : Wrong(key, value, "a readable file");
  };
}

std::map<std::string, Setter> Setters(ScriptedWorkerConfig* c) {
  return {
      {"vocab_size", Integer(&c->vocab_size, 1, kInt)},
      {"max_seq_len", Integer(&c->max_seq_len, 2, kInt)},
      {"num_blocks", Integer(&c->num_blocks, 1, kMaxBlocks)},
      {"tokens_per_block", Integer(&c->tokens_per_block, 1, 1024)},
      {"bytes_per_block", Integer(&c->bytes_per_block, 0, kLong)},
      {"kv_groups", Groups(&c->kv_groups)},
      {"end_ids", Ids(&c->end_ids)},
      {"pad_id", Integer(&c->pad_id, -1, kInt)},
      {"model_name", Text(&c->model_name)},
      {"token_table_file", FileContents(&c->token_table)},
      {"expert_layers", Ids(&c->expert_layers)},
      {"num_experts", Integer(&c->num_experts, 0, 65536)},
      {"max_num_seqs", Integer(&c->max_num_seqs, 0, 65536)},
      {"max_num_tokens", Integer(&c->max_num_tokens, 0, kInt)},
      {"emit", Rule(&c->emit)},
      {"count_start", Integer(&c->count_start, 0, kInt)},
      {"constant_token", Integer(&c->constant_token, 0, kInt)},
      {"end_after", Integer(&c->end_after, 0, kInt)},
      {"step_us", Integer(&c->step_us, 0, kLong)},
      {"step_jitter_us", Integer(&c->step_jitter_us, 0, kLong)},
      {"seed", Integer(&c->seed, 0, std::numeric_limits<int64_t>::max())},
      {"start_ms", Integer(&c->start_ms, 0, kInt)},
      {"fail_at_step", Integer(&c->fail_at_step, 0, kLong)},
      {"die_at_step", Integer(&c->die_at_step, 0, kLong)},
      {"stall_at_step", Integer(&c->stall_at_step, 0, kLong)},
      {"fault_count", Integer(&c->fault_count, 0, kInt)},
      {"fail_starts", Integer(&c->fail_starts, 0, kInt)},
  };
}

// What no single value shows.
Status CheckTogether(const ScriptedWorkerConfig& c) {
  const auto outside = [&](const char* key, int32_t id) {
    return Status::InvalidArgument(std::string("scripted worker: ") + key + " is " +
                                   std::to_string(id) + ", must be below vocab_size " +
                                   std::to_string(c.vocab_size));
  };
  for (const int32_t id : c.end_ids) {
    if (id >= c.vocab_size) return outside("end_ids", id);
  }
  if (c.pad_id >= c.vocab_size) return outside("pad_id", c.pad_id);
  if (c.count_start >= c.vocab_size) return outside("count_start", c.count_start);
  if (c.constant_token >= c.vocab_size) return outside("constant_token", c.constant_token);
  if (c.end_after > 0 && c.end_ids.empty()) {
    return Status::InvalidArgument("scripted worker: end_after is " + std::to_string(c.end_after) +
                                   ", but end_ids is empty");
  }
  if (c.expert_layers.empty() != (c.num_experts == 0)) {
    return Status::InvalidArgument("scripted worker: num_experts is " +
                                   std::to_string(c.num_experts) + ", expert_layers names " +
                                   std::to_string(c.expert_layers.size()) + " layers");
  }
  for (size_t i = 0; i < c.kv_groups.size(); ++i) {
    const KvGroup& group = c.kv_groups[i];
    if (group.num_blocks == 0 || group.windowed() != (group.window > 0)) {
      return Status::InvalidArgument("scripted worker: kv_groups[" + std::to_string(i) +
                                     "] needs num_blocks, and a window unless it is full");
    }
  }
  return Status::Ok();
}

}  // namespace

std::vector<KvGroup> ScriptedWorkerConfig::Groups() const {
  if (!kv_groups.empty()) return kv_groups;
  return {{KvKind::kFull, 0, num_blocks, bytes_per_block}};
}

StatusOr<ScriptedWorkerConfig> ScriptedWorkerConfig::FromJson(const std::string& text) {
  const StatusOr<json> parsed = ParseJson(text);
  if (!parsed.ok() || !parsed->is_object()) {
    return Status::InvalidArgument(
        "scripted worker: the configuration " +
        (parsed.ok() ? "is not a JSON object" : parsed.status().message()));
  }
  ScriptedWorkerConfig config;
  const Status set = SetAll(Setters(&config), *parsed, "");
  if (!set.ok()) return set;
  const Status status = CheckTogether(config);
  if (!status.ok()) return status;
  return config;
}

}  // namespace slipstream
