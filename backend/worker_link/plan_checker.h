// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/status.h"
#include "executor/step.h"

namespace slipstream {

// A slot as a strict worker knows it.
struct CheckedSlot {
  bool live = false;
  bool sampled = false;  // the last of `tokens` was sampled since admission
  AdmitRecord record{};
  std::vector<int32_t> end_ids;
  std::vector<int32_t> tokens;               // prompt, then generated
  std::vector<std::vector<int32_t>> blocks;  // a table per group; kNoBlock: given up, or not given
  std::vector<int32_t> held_from;            // by group: nothing below it in the table is held
  int32_t computed = 0;                      // positions with KV
  int32_t old_blocks = 0;                    // blocks before the current step
  uint64_t fingerprint = 0;                  // of tokens[0, computed)
  uint64_t named_in = 0;                     // the last step that named the slot
};

// Holds plans to the contract of executor/step.h, the way a worker that trusts nothing would.
//
// Instead of KV it keeps, for every position of every block, a fingerprint of all tokens up to
// there. So a sequence that is given a block whose content is not exactly that of its own tokens -
// because reuse, eviction, a copy or preemption went wrong - is found out at the step that does it.
//
// Contract, beyond the shapes: step ids grow; slots are below kSlotsPerSeq times max_num_seqs,
// admitted before use (with their history) and not while live; retired slots were live; a sequence
// starts where it stopped or further, if blocks that are appended in this very step hold the
// positions between; its tokens are the known ones, and "the slot's last token" is named only where
// that token belongs; blocks cover its positions; a block has one writer, and is shared only once
// it is full, or, where all chunks of the step that fills it are of one token, only later; copies
// go into blocks appended by this step; sampling happens only after the last known token. In a
// windowed group all this concerns what the sequence sees: blocks are taken for given up exactly
// when step.h says so, and what is left out need only be there as far as it is seen.
class PlanChecker {
 public:
  struct Limits {
    int32_t vocab_size = 0;
    int32_t max_seq_len = 0;
    int32_t tokens_per_block = 0;
    std::vector<KvGroup> kv_groups;
    int32_t max_num_seqs = 0;    // of one step; 0 = none
    int32_t max_num_tokens = 0;  // 0 = none
  };

  explicit PlanChecker(const Limits& limits);

  // Applies the plan up to the end of its forward pass. An error names the step and what is wrong;
  // the state is then undefined until Reset().
  Status Apply(const StepPlan& plan);

  // Of a slot that the plan just applied names.
  const CheckedSlot& slot(uint32_t slot) const { return slots_[slot]; }
  // Adds the token that was sampled after the slot's last computed position.
  void AddSampled(uint32_t slot, int32_t token);

  void Reset();
  int32_t live_slots() const { return live_slots_; }

 private:
  // Where in the plan's arrays the data of one sequence begin.
  struct Entry {
    size_t index = 0;
    size_t first_token = 0;
    size_t first_block = 0;  // of each group's part
  };
  struct BlockState {
    int32_t holders = 0;   // live slots with this block in their table
    uint64_t step = 0;     // the last step that touched it: what the next two are of
    int32_t appended = 0;  // holders that got it in this step
    int64_t writer = -1;   // the slot that writes to it in this step
  };
  struct Pool {
    KvGroup group;
    std::vector<BlockState> blocks;
    std::vector<uint64_t> content;  // [num_blocks, tokens_per_block]; 0 = never computed
  };
  // Positions that a sequence leaves out because their KV is said to be there.
  struct Gap {
    uint32_t slot;
    int32_t from;
    int32_t to;
    uint64_t fingerprint;  // of the tokens before `from`
  };

  Status CheckShape(const StepPlan& plan) const;
  Status CheckTotals(const StepPlan& plan) const;
  void GiveUp(CheckedSlot* slot, int32_t position);
  Status Retire(const StepPlan& plan);
  Status Admit(const StepPlan& plan, const AdmitRecord& record);
  Status CheckAux(const StepPlan& plan, const AdmitRecord& record) const;
  Status AppendBlocks(const StepPlan& plan, const Entry& entry);
  Status AppendBlock(size_t group, uint32_t slot_id, int32_t block, int32_t first);
  Status Copy(const BlockCopy& copy);
  Status Write(const StepPlan& plan, const Entry& entry);
  Status CheckRange(const StepPlan& plan, const Entry& entry) const;
  Status CheckToken(uint32_t slot_id, int32_t position, int32_t token) const;
  Status Claim(size_t group, uint32_t slot_id, int32_t index, int32_t end);
  Status CheckGap(const Gap& gap);

  BlockState& Touch(size_t group, int32_t block);
  uint64_t& Content(size_t group, const CheckedSlot& slot, int32_t position);
  int32_t FirstBlock(size_t group, int32_t position) const;
  std::string NameOf(size_t group, int32_t block) const;
  std::string OtherHolder(size_t group, int32_t block, uint32_t slot) const;

  const Limits limits_;
  uint64_t step_ = 0;    // the last one applied
  bool single_ = false;  // all of its chunks are of one token
  int32_t live_slots_ = 0;
  std::vector<CheckedSlot> slots_;
  std::vector<Pool> pools_;           // by group
  std::vector<Entry> entries_;        // of the current plan
  std::vector<Gap> gaps_;             // likewise
  std::vector<uint32_t> last_slots_;  // that the plan before named
};

}  // namespace slipstream
