// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace slipstream {

// Aho-Corasick automaton over symbols of any ordered type: finds every pattern in a stream in time
// linear in the stream, whatever the patterns, with memory linear in the patterns.
//
// A state is the longest suffix of the stream so far that begins some pattern; 0 is the empty one.
// Immutable: streams keep only their state.
template <typename Symbol>
class AhoCorasick {
 public:
  using State = int32_t;
  static constexpr State kStart = 0;

  // `Sequence` is a container of Symbol. Empty patterns never match.
  template <typename Sequence>
  explicit AhoCorasick(const std::vector<Sequence>& patterns) {
    std::vector<std::map<Symbol, State>> children(1);
    nodes_.resize(1);
    for (size_t index = 0; index < patterns.size(); ++index) {
      AddPattern(patterns[index], static_cast<int32_t>(index), &children);
    }
    Link(children);
    Flatten(children);
  }

  State Next(State state, Symbol symbol) const {
    for (;;) {
      if (const State child = Child(state, symbol); child != kStart) return child;
      if (state == kStart) return kStart;
      state = nodes_[state].fail;
    }
  }

  // Symbols in the suffix that `state` stands for: what could still become a match.
  int32_t depth(State state) const { return nodes_[state].depth; }
  // The longest pattern that ends here (of equal ones the first given), or -1; and its length.
  int32_t match(State state) const { return nodes_[state].pattern; }
  int32_t match_length(State state) const { return nodes_[state].pattern_length; }

 private:
  struct Node {
    State fail = kStart;
    int32_t depth = 0;
    int32_t pattern = -1;
    int32_t pattern_length = 0;
    int32_t first_edge = 0;
    int32_t num_edges = 0;
  };

  template <typename Sequence>
  void AddPattern(const Sequence& pattern, int32_t index,
                  std::vector<std::map<Symbol, State>>* children) {
    State state = kStart;
    for (const auto element : pattern) {
      const auto symbol = static_cast<Symbol>(element);
      const auto [edge, added] =
          (*children)[state].emplace(symbol, static_cast<State>(nodes_.size()));
      const State child = edge->second;
      if (added) {
        children->emplace_back();
        nodes_.emplace_back();
        nodes_[child].depth = nodes_[state].depth + 1;
      }
      state = child;
    }
    if (state == kStart || nodes_[state].pattern >= 0) return;
    nodes_[state].pattern = index;
    nodes_[state].pattern_length = nodes_[state].depth;
  }

  // Breadth first, so that a node's failure target is complete before the node needs it.
  void Link(const std::vector<std::map<Symbol, State>>& children) {
    std::vector<State> queue = {kStart};
    for (size_t head = 0; head < queue.size(); ++head) {
      const State parent = queue[head];
      for (const auto& [symbol, child] : children[parent]) {
        queue.push_back(child);
        State fail = kStart;
        for (State from = parent; from != kStart && fail == kStart;) {
          from = nodes_[from].fail;
          const auto edge = children[from].find(symbol);
          if (edge != children[from].end()) fail = edge->second;
        }
        nodes_[child].fail = fail;
        if (nodes_[child].pattern < 0) {  // a shorter pattern may end here too
          nodes_[child].pattern = nodes_[fail].pattern;
          nodes_[child].pattern_length = nodes_[fail].pattern_length;
        }
      }
    }
  }

  void Flatten(const std::vector<std::map<Symbol, State>>& children) {
    edges_.reserve(nodes_.size());
    for (size_t state = 0; state < nodes_.size(); ++state) {
      nodes_[state].first_edge = static_cast<int32_t>(edges_.size());
      nodes_[state].num_edges = static_cast<int32_t>(children[state].size());
      edges_.insert(edges_.end(), children[state].begin(), children[state].end());
    }
  }

  State Child(State state, Symbol symbol) const {
    const auto begin = edges_.begin() + nodes_[state].first_edge;
    const auto end = begin + nodes_[state].num_edges;
    const auto edge = std::lower_bound(
        begin, end, symbol, [](const auto& entry, Symbol value) { return entry.first < value; });
    return edge != end && edge->first == symbol ? edge->second : kStart;
  }

  std::vector<Node> nodes_;
  std::vector<std::pair<Symbol, State>> edges_;  // grouped by node, sorted by symbol
};

}  // namespace slipstream
