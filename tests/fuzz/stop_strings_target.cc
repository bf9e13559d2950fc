// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "executor/stop_matcher.h"
#include "executor/utf8.h"
#include "input_bytes.h"
#include "targets.h"

namespace slipstream::fuzz {
namespace {

struct Found {
  std::string text;
  std::optional<StopMatch> match;
};

// The definition, word for word: first end, then first begin, then first index.
Found Reference(const std::vector<std::string>& stops, bool include, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<StopMatch> best;
    for (size_t i = 0; i < stops.size(); ++i) {
      const size_t size = stops[i].size();
      if (size > end || text.compare(end - size, size, stops[i]) != 0) continue;
      if (!best || end - size < best->begin) {
        best = StopMatch{static_cast<int32_t>(i), end - size, end};
      }
    }
    if (best) return {text.substr(0, include ? best->end : best->begin), best};
  }
  return {text, std::nullopt};
}

void Check(const std::vector<std::string>& stops, bool include,
           const std::vector<std::string>& pieces) {
  auto compiled = StopStrings::Create(stops, include);
  if (!compiled.ok()) {
    Require(compiled.status().code() == StatusCode::kInvalidArgument,
            "wrong stops are the caller's");
    return;
  }
  StopMatcher matcher(std::move(*compiled));
  std::string all;
  std::string text;
  std::optional<StopMatch> match;
  for (const std::string& piece : pieces) {
    all += piece;
    std::string chunk;
    const auto found = matcher.Feed(piece, &chunk);
    Require(!found || !match, "a stream ends once");
    Require(!IsValidUtf8(all) || IsValidUtf8(text + chunk), "whole characters come out");
    if (found) match = found;
    text += chunk;
  }
  matcher.Flush(&text);
  const Found expected = Reference(stops, include, all);
  Require(match.has_value() == expected.match.has_value(), "it stops where the definition does");
  Require(!match || (match->index == expected.match->index &&
                     match->begin == expected.match->begin && match->end == expected.match->end),
          "it is the definition's match");
  Require(text == expected.text, "the text is what precedes the match");
}

void Run(const uint8_t* data, size_t size) {
  InputBytes in(data, std::min<size_t>(size, 2000));
  const bool include = in.Below(2) == 1;
  std::vector<std::string> stops(in.Below(6));
  for (std::string& stop : stops) stop = in.Bytes(in.Below(12));
  std::vector<std::string> pieces;
  while (!in.empty()) pieces.push_back(in.Bytes(in.Below(20)));
  Check(stops, include, pieces);
}

std::string Seed(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  OutputBytes out;
  out.Byte(pieces.size() % 2).Byte(stops.size());
  for (const std::string& stop : stops) out.Byte(stop.size()).Raw(stop);
  for (const std::string& piece : pieces) out.Byte(piece.size()).Raw(piece);
  return out.bytes();
}

std::vector<std::string> Seeds() {
  return {Seed({"stop"}, {"a st", "op b"}), Seed({"aab", "ab"}, {"a", "aa", "ab", "b"}),
          Seed({"\xC3\xA9", "x\xC3\xA9y"}, {"x\xC3", "\xA9", "yz"}), Seed({}, {"no", "", "stops"}),
          Seed({"\n\n", "###"}, {"a\n", "##\n", "\n#"})};
}

}  // namespace

FuzzTarget StopStringsTarget() { return {"stop_strings", Run, Seeds}; }

}  // namespace slipstream::fuzz
