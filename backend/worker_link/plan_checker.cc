// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/plan_checker.h"

#include <algorithm>
#include <numeric>

#include "executor/engine_config.h"

namespace slipstream {
namespace {

constexpr uint64_t kEmpty = 0x9e3779b97f4a7c15;  // the fingerprint of no tokens
constexpr int32_t kMaxSeqs = 65536;

uint64_t Extend(uint64_t fingerprint, int32_t token) {
  uint64_t x = fingerprint ^ (static_cast<uint64_t>(static_cast<uint32_t>(token)) + 1);
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 31;
  x *= 0x94d049bb133111eb;
  x ^= x >> 29;
  return x | 1;  // never the 0 of a position that was not computed
}

std::string Str(int64_t value) { return std::to_string(value); }

Status Broken(std::string what) { return Status::Internal(std::move(what)); }

}  // namespace

PlanChecker::PlanChecker(const Limits& limits) : limits_(limits) { Reset(); }

void PlanChecker::Reset() {
  step_ = 0;
  live_slots_ = 0;
  slots_.clear();
  last_slots_.clear();
  pools_.clear();
  for (const KvGroup& group : limits_.kv_groups) {
    const auto blocks = static_cast<size_t>(group.num_blocks);
    const size_t positions = blocks * static_cast<size_t>(limits_.tokens_per_block);
    pools_.push_back({group, std::vector<BlockState>(blocks), std::vector<uint64_t>(positions)});
  }
}

Status PlanChecker::Apply(const StepPlan& plan) {
  const auto apply = [&]() -> Status {
    Status status = CheckShape(plan);
    if (!status.ok()) return status;
    step_ = plan.step_id;
    single_ = plan.token_ids.size() == plan.num_seqs();
    for (const uint32_t id : last_slots_) GiveUp(&slots_[id], slots_[id].computed);
    last_slots_ = plan.slot;
    status = Retire(plan);
    for (size_t i = 0; status.ok() && i < plan.admitted.size(); ++i) {
      status = Admit(plan, plan.admitted[i]);
    }
    Entry entry;
    for (; status.ok() && entry.index < plan.num_seqs(); ++entry.index) {
      status = AppendBlocks(plan, entry);
      entries_.push_back(entry);
      entry.first_token += plan.num_tokens[entry.index];
      entry.first_block += plan.num_new_blocks[entry.index];
    }
    for (size_t i = 0; status.ok() && i < plan.copies.size(); ++i) status = Copy(plan.copies[i]);
    // All KV of the step is written before any of it is read, but for what Claim says.
    for (size_t i = 0; status.ok() && i < entries_.size(); ++i) status = Write(plan, entries_[i]);
    for (size_t i = 0; status.ok() && i < gaps_.size(); ++i) status = CheckGap(gaps_[i]);
    return status;
  };
  entries_.clear();
  gaps_.clear();
  const Status status = apply();
  if (status.ok()) return status;
  return Broken("the plan of step " + Str(static_cast<int64_t>(plan.step_id)) +
                " breaks the contract: " + status.message());
}

Status PlanChecker::CheckShape(const StepPlan& plan) const {
  const size_t n = plan.slot.size();
  if (plan.step_id <= step_) return Broken("it follows step " + Str(static_cast<int64_t>(step_)));
  if (plan.num_tokens.size() != n || plan.first_position.size() != n ||
      plan.num_new_blocks.size() != n || plan.flags.size() != n) {
    return Broken("its arrays of sequences differ in length");
  }
  if (limits_.max_num_seqs > 0 && n > static_cast<size_t>(limits_.max_num_seqs)) {
    return Broken("it has " + Str(static_cast<int64_t>(n)) + " sequences, max_num_seqs is " +
                  Str(limits_.max_num_seqs));
  }
  const auto tokens = std::accumulate(plan.num_tokens.begin(), plan.num_tokens.end(), uint64_t{0});
  if (plan.num_groups != pools_.size()) {
    return Broken("it has " + Str(plan.num_groups) + " KV groups, the model " + Str(pools_.size()));
  }
  const uint64_t blocks = plan.num_groups * std::accumulate(plan.num_new_blocks.begin(),
                                                            plan.num_new_blocks.end(), uint64_t{0});
  if (tokens != plan.token_ids.size() || blocks != plan.new_block_ids.size()) {
    return Broken("it has " + Str(plan.token_ids.size()) + " tokens and " +
                  Str(plan.new_block_ids.size()) + " new blocks, its sequences " + Str(tokens) +
                  " and " + Str(blocks));
  }
  if (limits_.max_num_tokens > 0 && tokens > static_cast<uint64_t>(limits_.max_num_tokens)) {
    return Broken("it has " + Str(tokens) + " tokens, max_num_tokens is " +
                  Str(limits_.max_num_tokens));
  }
  return Status::Ok();
}

// The slot's next chunk starts at `position`: it needs nothing below what that sees.
void PlanChecker::GiveUp(CheckedSlot* slot, int32_t position) {
  for (size_t group = 0; slot->live && group < pools_.size(); ++group) {
    if (!pools_[group].group.windowed()) continue;
    std::vector<int32_t>& blocks = slot->blocks[group];
    int32_t& i = slot->held_from[group];
    const auto size = static_cast<int32_t>(blocks.size());
    for (const int32_t end = std::min(FirstBlock(group, position), size); i < end; ++i) {
      if (blocks[i] == kNoBlock) continue;  // it was not given
      --pools_[group].blocks[blocks[i]].holders;
      blocks[i] = kNoBlock;
    }
  }
}

Status PlanChecker::Retire(const StepPlan& plan) {
  for (const uint32_t id : plan.retired) {
    if (id >= slots_.size() || !slots_[id].live) {
      return Broken("slot " + Str(id) + " is retired but not live");
    }
    CheckedSlot& slot = slots_[id];
    for (size_t group = 0; group < pools_.size(); ++group) {
      for (const int32_t block : slot.blocks[group]) {
        if (block != kNoBlock) --pools_[group].blocks[block].holders;
      }
    }
    slot.live = false;
    --live_slots_;
  }
  return Status::Ok();
}

Status PlanChecker::Admit(const StepPlan& plan, const AdmitRecord& record) {
  const std::string name = "slot " + Str(record.slot);
  const int32_t max_num_seqs = limits_.max_num_seqs > 0 ? limits_.max_num_seqs : kMaxSeqs;
  const auto max_slots = static_cast<uint32_t>(kSlotsPerSeq * max_num_seqs);
  if (record.slot >= max_slots)
    return Broken(name + " is admitted, the limit is " + Str(max_slots));
  if (record.slot >= slots_.size()) slots_.resize(record.slot + 1);
  CheckedSlot& slot = slots_[record.slot];
  if (slot.live) return Broken(name + " is admitted while it is live");
  const Status aux = CheckAux(plan, record);
  if (!aux.ok()) return aux;
  const auto first = plan.aux.begin() + record.history_offset;
  slot.live = true;
  slot.sampled = false;
  slot.record = record;
  slot.tokens.assign(first, first + record.history_len);
  const auto ends = plan.aux.begin() + record.end_ids_offset;
  slot.end_ids.assign(ends, ends + record.end_ids_len);
  slot.blocks.assign(pools_.size(), {});
  slot.held_from.assign(pools_.size(), 0);
  slot.computed = 0;
  slot.fingerprint = kEmpty;
  slot.named_in = 0;
  ++live_slots_;
  return Status::Ok();
}

Status PlanChecker::CheckAux(const StepPlan& plan, const AdmitRecord& record) const {
  const std::string name = "slot " + Str(record.slot) + " is admitted with ";
  const struct {
    const char* what;
    uint64_t offset;
    uint64_t length;
  } ranges[] = {{"history", record.history_offset, record.history_len},
                {"end ids", record.end_ids_offset, record.end_ids_len},
                {"bad words", record.bad_words_offset, record.bad_words_len},
                {"bias", record.bias_offset, record.bias_len}};
  for (const auto& range : ranges) {
    if (range.offset + range.length > plan.aux.size()) {
      return Broken(name + range.what + " that ends at " + Str(range.offset + range.length) +
                    " of " + Str(plan.aux.size()) + " aux elements");
    }
  }
  if ((record.flags & kAdmitHistory) == 0) return Broken(name + "no history");
  if (record.prompt_len < 1 || static_cast<uint32_t>(record.prompt_len) > record.history_len) {
    return Broken(name + "prompt_len " + Str(record.prompt_len) + " and " +
                  Str(record.history_len) + " tokens of history");
  }
  if (record.history_len > static_cast<uint32_t>(limits_.max_seq_len)) {
    return Broken(name + Str(record.history_len) + " tokens, max_seq_len is " +
                  Str(limits_.max_seq_len));
  }
  for (uint32_t i = 0; i < record.history_len; ++i) {
    const int32_t token = plan.aux[record.history_offset + i];
    if (token < 0 || token >= limits_.vocab_size) {
      return Broken(name + "token id " + Str(token) + " at position " + Str(i));
    }
  }
  if (record.num_logprobs < -1 || record.num_logprobs > limits_.vocab_size) {
    return Broken(name + "num_logprobs " + Str(record.num_logprobs));
  }
  return Status::Ok();
}

PlanChecker::BlockState& PlanChecker::Touch(size_t group, int32_t block) {
  BlockState& state = pools_[group].blocks[block];
  if (state.step != step_) {
    state.step = step_;
    state.appended = 0;
    state.writer = -1;
  }
  return state;
}

Status PlanChecker::AppendBlocks(const StepPlan& plan, const Entry& entry) {
  const uint32_t id = plan.slot[entry.index];
  if (id >= slots_.size() || !slots_[id].live) {
    return Broken("slot " + Str(id) + " is scheduled but not admitted");
  }
  CheckedSlot& slot = slots_[id];
  if (slot.named_in == step_) return Broken("slot " + Str(id) + " is scheduled twice");
  slot.named_in = step_;
  slot.old_blocks = static_cast<int32_t>(slot.blocks[0].size());
  const auto first = static_cast<int32_t>(plan.first_position[entry.index]);
  const size_t group_ids = plan.new_block_ids.size() / plan.num_groups;
  for (size_t group = 0; group < pools_.size(); ++group) {
    const size_t begin = group * group_ids + entry.first_block;
    for (uint32_t i = 0; i < plan.num_new_blocks[entry.index]; ++i) {
      const Status status = AppendBlock(group, id, plan.new_block_ids[begin + i], first);
      if (!status.ok()) return status;
    }
  }
  GiveUp(&slot, first);
  return CheckRange(plan, entry);
}

// `first`: where the slot's chunk starts.
Status PlanChecker::AppendBlock(size_t group, uint32_t slot_id, int32_t block, int32_t first) {
  std::vector<int32_t>& blocks = slots_[slot_id].blocks[group];
  const bool unseen = static_cast<int32_t>(blocks.size()) < FirstBlock(group, first);
  const int32_t num_blocks = pools_[group].group.num_blocks;
  if (unseen && block != kNoBlock) {
    return Broken("slot " + Str(slot_id) + " gets " + NameOf(group, block) + " below its window");
  }
  if (!unseen && (block < 0 || block >= num_blocks)) {
    return Broken("slot " + Str(slot_id) + " gets " + NameOf(group, block) + ", the pool has " +
                  Str(num_blocks));
  }
  blocks.push_back(block);
  if (unseen) return Status::Ok();
  BlockState& state = Touch(group, block);
  ++state.holders;
  ++state.appended;
  return Status::Ok();
}

Status PlanChecker::CheckRange(const StepPlan& plan, const Entry& entry) const {
  const std::string name = "slot " + Str(plan.slot[entry.index]);
  const CheckedSlot& slot = slots_[plan.slot[entry.index]];
  const int64_t first = plan.first_position[entry.index];
  const int64_t count = plan.num_tokens[entry.index];
  const int64_t end = first + count;
  const int64_t room =
      int64_t{limits_.tokens_per_block} * static_cast<int64_t>(slot.blocks[0].size());
  const auto known = static_cast<int64_t>(slot.tokens.size());
  if (count < 1) return Broken(name + " is scheduled without tokens");
  if (end > room) {
    return Broken(name + " computes positions up to " + Str(end) + ", its blocks hold " +
                  Str(room));
  }
  if (end > known) {
    return Broken(name + " computes positions up to " + Str(end) + " of " + Str(known) +
                  " known tokens");
  }
  if (first < slot.computed) {
    return Broken(name + " starts at position " + Str(first) + ", but stopped at " +
                  Str(slot.computed));
  }
  if ((plan.flags[entry.index] & kSeqSample) == 0) return Status::Ok();
  if (end != known) {
    return Broken(name + " samples after position " + Str(end - 1) + ", but " + Str(known) +
                  " tokens are known");
  }
  if (end >= limits_.max_seq_len) {
    return Broken(name + " samples token " + Str(end + 1) + ", max_seq_len is " +
                  Str(limits_.max_seq_len));
  }
  return Status::Ok();
}

Status PlanChecker::Copy(const BlockCopy& copy) {
  const std::string name = "the copy of block " + Str(copy.src) + " to " + Str(copy.dst);
  if (copy.group < 0 || copy.group >= static_cast<int32_t>(pools_.size())) {
    return Broken(name + " is in group " + Str(copy.group) + " of " + Str(pools_.size()));
  }
  const auto group = static_cast<size_t>(copy.group);
  const int32_t num_blocks = pools_[group].group.num_blocks;
  const auto in_pool = [&](int32_t block) { return block >= 0 && block < num_blocks; };
  if (!in_pool(copy.src) || !in_pool(copy.dst)) {
    return Broken(name + " leaves the pool of " + Str(num_blocks));
  }
  if (copy.num_tokens < 1 || copy.num_tokens > limits_.tokens_per_block) {
    return Broken(name + " has " + Str(copy.num_tokens) + " positions, a block " +
                  Str(limits_.tokens_per_block));
  }
  const BlockState& target = Touch(group, copy.dst);
  if (target.holders > target.appended) {
    return Broken(name + " overwrites a block in use");
  }
  const auto size = static_cast<size_t>(limits_.tokens_per_block);
  const auto content = pools_[group].content.begin();
  std::copy_n(content + static_cast<ptrdiff_t>(copy.src * size), copy.num_tokens,
              content + static_cast<ptrdiff_t>(copy.dst * size));
  return Status::Ok();
}

Status PlanChecker::Write(const StepPlan& plan, const Entry& entry) {
  const uint32_t id = plan.slot[entry.index];
  CheckedSlot& slot = slots_[id];
  const auto first = static_cast<int32_t>(plan.first_position[entry.index]);
  const auto end = first + static_cast<int32_t>(plan.num_tokens[entry.index]);
  if (first > slot.computed) {
    gaps_.push_back({id, slot.computed, first, slot.fingerprint});
    for (int32_t p = slot.computed; p < first; ++p) {
      slot.fingerprint = Extend(slot.fingerprint, slot.tokens[p]);
    }
  }
  const int32_t size = limits_.tokens_per_block;
  for (size_t group = 0; group < pools_.size(); ++group) {
    for (int32_t index = first / size; index <= (end - 1) / size; ++index) {
      const Status claimed = Claim(group, id, index, end);
      if (!claimed.ok()) return claimed;
    }
  }
  for (int32_t p = first; p < end; ++p) {
    const Status token = CheckToken(id, p, plan.token_ids[entry.first_token + (p - first)]);
    if (!token.ok()) return token;
    slot.fingerprint = Extend(slot.fingerprint, slot.tokens[p]);
    for (size_t group = 0; group < pools_.size(); ++group) {
      Content(group, slot, p) = slot.fingerprint;
    }
  }
  slot.computed = end;
  return Status::Ok();
}

// The slot writes to the index-th block of its table; its positions are computed up to `end`.
Status PlanChecker::Claim(size_t group, uint32_t slot_id, int32_t index, int32_t end) {
  const CheckedSlot& slot = slots_[slot_id];
  const int32_t block = slot.blocks[group][index];
  const std::string name = "slot " + Str(slot_id) + " writes to " + NameOf(group, block);
  BlockState& state = Touch(group, block);
  if (state.writer >= 0) return Broken(name + ", and so does slot " + Str(state.writer));
  state.writer = slot_id;
  const int32_t others_before = state.holders - state.appended - (index < slot.old_blocks ? 1 : 0);
  if (others_before > 0) {
    return Broken(name + ", which " + OtherHolder(group, block, slot_id) + " holds");
  }
  if (state.holders > 1 && end < (index + 1) * limits_.tokens_per_block) {
    return Broken(name + ", which " + OtherHolder(group, block, slot_id) +
                  " shares before it is full");
  }
  if (state.holders > 1 && single_) {
    return Broken(name + ", which " + OtherHolder(group, block, slot_id) +
                  " shares in a step of single tokens");
  }
  return Status::Ok();
}

Status PlanChecker::CheckToken(uint32_t slot_id, int32_t position, int32_t token) const {
  const CheckedSlot& slot = slots_[slot_id];
  const std::string name = "slot " + Str(slot_id) + ", position " + Str(position) + ": ";
  if (token == kTokenFromSlot) {
    if (!slot.sampled || position + 1 != static_cast<int32_t>(slot.tokens.size())) {
      return Broken(name + "the slot's last sampled token does not belong there");
    }
  } else if (token != slot.tokens[position]) {
    return Broken(name + "token " + Str(token) + " is given, " + Str(slot.tokens[position]) +
                  " is known");
  }
  return Status::Ok();
}

Status PlanChecker::CheckGap(const Gap& gap) {
  const CheckedSlot& slot = slots_[gap.slot];
  uint64_t fingerprint = gap.fingerprint;
  for (int32_t p = gap.from; p < gap.to; ++p) {
    fingerprint = Extend(fingerprint, slot.tokens[p]);
    for (size_t group = 0; group < pools_.size(); ++group) {
      if (p < pools_[group].group.FirstVisible(gap.to)) continue;
      if (Content(group, slot, p) == fingerprint) continue;
      const int32_t block = slot.blocks[group][p / limits_.tokens_per_block];
      return Broken("slot " + Str(gap.slot) + " starts at position " + Str(gap.to) + ", but " +
                    NameOf(group, block) + " does not hold the KV of its tokens at position " +
                    Str(p));
    }
  }
  return Status::Ok();
}

uint64_t& PlanChecker::Content(size_t group, const CheckedSlot& slot, int32_t position) {
  const int32_t size = limits_.tokens_per_block;
  const auto block = static_cast<size_t>(slot.blocks[group][position / size]);
  return pools_[group].content[block * size + position % size];
}

int32_t PlanChecker::FirstBlock(size_t group, int32_t position) const {
  return pools_[group].group.FirstVisible(position) / limits_.tokens_per_block;
}

std::string PlanChecker::NameOf(size_t group, int32_t block) const {
  return "block " + Str(block) + (pools_.size() > 1 ? " of group " + Str(group) : "");
}

std::string PlanChecker::OtherHolder(size_t group, int32_t block, uint32_t slot) const {
  for (size_t id = 0; id < slots_.size(); ++id) {
    if (id == slot || !slots_[id].live) continue;
    const auto& blocks = slots_[id].blocks[group];
    if (std::find(blocks.begin(), blocks.end(), block) != blocks.end()) {
      return "slot " + Str(id);
    }
  }
  return "its own table a second time";
}

void PlanChecker::AddSampled(uint32_t slot, int32_t token) {
  slots_[slot].tokens.push_back(token);
  slots_[slot].sampled = true;
}

}  // namespace slipstream
