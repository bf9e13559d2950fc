// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor/request.h"
#include "executor/token_table.h"

namespace slipstream::simulation {

// What the scripted model says and how it reads: tokens, text and logits as pure functions, written
// from their definitions, of whole lists of tokens and without any state. What the Executor builds
// up step by step is held to them.
class Script {
 public:
  // kByteLevel or kByteFallback.
  Script(int32_t vocab_size, PieceJoiner joiner);

  int32_t vocab_size() const { return static_cast<int32_t>(pieces_.size()); }
  // For WorkerInfo::token_table.
  std::string TokenTableBytes() const;

  // The token of that index of a request's sequence.
  int32_t Token(const RequestSpec& spec, int32_t sequence, int32_t index) const;
  // The text of the first `count` tokens.
  std::string Text(const std::vector<int32_t>& tokens, size_t count, bool skip_special) const;
  // The part of it that no further token can change.
  std::string Settled(const std::vector<int32_t>& tokens, size_t count, bool skip_special) const;

  // Log probabilities of one token: itself, then the `most_likely` ones.
  void AppendLogprobs(int32_t token, int32_t index, int32_t most_likely, std::vector<int32_t>* ids,
                      std::vector<float>* values) const;
  // A row of logits after a position; `sampled`: what was drawn from it, or -1.
  void AppendLogits(int32_t position, int32_t sampled, std::vector<float>* logits) const;

 private:
  // `open`: the end may still change.
  std::string Read(const std::vector<int32_t>& tokens, size_t count, bool skip_special,
                   bool open) const;
  std::string ReadRun(const std::string& run, bool open) const;

  const PieceJoiner joiner_;
  std::vector<std::string> pieces_;
  std::string flags_;
};

}  // namespace slipstream::simulation
