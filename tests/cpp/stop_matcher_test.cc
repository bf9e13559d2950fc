// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/stop_matcher.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "executor/utf8.h"

namespace slipstream {
namespace {

StopMatcher Matcher(std::vector<std::string> stops, bool include = false) {
  return StopMatcher(*StopStrings::Create(std::move(stops), include));
}

struct Result {
  std::string text;
  std::optional<StopMatch> match;
  std::vector<std::string> chunks;
};

Result Run(StopMatcher matcher, const std::vector<std::string>& pieces) {
  Result result;
  for (const std::string& piece : pieces) {
    std::string chunk;
    if (auto match = matcher.Feed(piece, &chunk)) result.match = match;
    result.chunks.push_back(chunk);
  }
  std::string rest;
  matcher.Flush(&rest);
  result.chunks.push_back(rest);
  for (const std::string& chunk : result.chunks) result.text += chunk;
  return result;
}

// The definition, word for word: first end, then first begin, then first index.
Result Reference(const std::vector<std::string>& stops, bool include, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<StopMatch> best;
    for (size_t i = 0; i < stops.size(); ++i) {
      const size_t size = stops[i].size();
      if (size > end || text.compare(end - size, size, stops[i]) != 0) continue;
      if (!best || end - size < best->begin)
        best = StopMatch{static_cast<int32_t>(i), end - size, end};
    }
    if (best) return {text.substr(0, include ? best->end : best->begin), best, {}};
  }
  return {text, std::nullopt, {}};
}

void CheckSame(const Result& actual, const Result& expected) {
  CHECK(actual.text == expected.text);
  REQUIRE(actual.match.has_value() == expected.match.has_value());
  if (!actual.match) return;
  CHECK(actual.match->index == expected.match->index);
  CHECK(actual.match->begin == expected.match->begin);
  CHECK(actual.match->end == expected.match->end);
}

// Cuts `text` after byte i where bit i of `cuts` is set.
std::vector<std::string> Split(const std::string& text, uint32_t cuts) {
  std::vector<std::string> pieces(1);
  for (size_t i = 0; i < text.size(); ++i) {
    pieces.back() += text[i];
    if (i + 1 < text.size() && (cuts >> i & 1) != 0) pieces.emplace_back();
  }
  return pieces;
}

TEST_CASE("stop matcher: exact chunks, held text and match") {
  StopMatcher matcher = Matcher({"END"});
  std::string out;
  CHECK_FALSE(matcher.Feed("abcE", &out));
  CHECK(out == "abc");
  CHECK(matcher.held_bytes() == 1);
  CHECK_FALSE(matcher.Feed("N", &out));
  CHECK(out == "abc");
  CHECK_FALSE(matcher.Feed("E", &out));  // near miss: "EN" is released, the new "E" is not
  CHECK(out == "abcEN");
  const auto match = matcher.Feed("NDxyz", &out);
  REQUIRE(match);
  CHECK(match->index == 0);
  CHECK(match->begin == 5);
  CHECK(match->end == 8);
  CHECK(out == "abcEN");
  CHECK(matcher.stopped());
  CHECK_FALSE(matcher.Feed("more", &out));
  matcher.Flush(&out);
  CHECK(out == "abcEN");
}

TEST_CASE("stop matcher: the text before a stop that begins with the first token") {
  CHECK(Run(Matcher({"DEFGHIJ"}), {"ABC", "DEF", "GHIJ"}).text == "ABC");
  CHECK(Run(Matcher({"DEFGHIJ"}), {"ABCDEFGHIJ"}).text == "ABC");
  CHECK(Run(Matcher({"ABC", "DEFGHIJ"}), {"ABCDEFGHIJ"}).text.empty());
  CHECK(Run(Matcher({"DEFGHIJ"}, true), {"ABC", "DEF", "GHIJ", "K"}).text == "ABCDEFGHIJ");
}

TEST_CASE("stop matcher: every partition gives the same text, match and only prefixes of it") {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"ABCDEFGHIJ", {"DEFGHIJ"}},
      {"aabaabaaab", {"aabaaa", "baab"}},
      {"xababab", {"ababc", "bab"}},
      {"say \xF0\x9F\x98\x80 ok", {"\xF0\x9F\x98\x81", "\xF0\x9F\x98\x80 o"}},
      {"\xE4\xBD\xA0\xE5\xA5\xBD!", {"\xE5\xA5\xBD"}},
      {"near mis", {"near miss", "ear mist"}},
      {"the end.", {"end.", "."}},
      {"overlap", {"verl", "erla", "rl", "l"}},
  };
  for (const auto& [text, stops] : cases) {
    for (const bool include : {false, true}) {
      const Result expected = Reference(stops, include, text);
      for (uint32_t cuts = 0; cuts < 1u << (text.size() - 1); ++cuts) {
        const Result actual = Run(Matcher(stops, include), Split(text, cuts));
        CheckSame(actual, expected);
        for (const std::string& chunk : actual.chunks) CHECK(IsValidUtf8(chunk));
      }
    }
  }
}

TEST_CASE("stop matcher: holds exactly the longest suffix that begins a stop string") {
  const std::vector<std::string> stops = {"abac", "bacab", "ca"};
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    StopMatcher matcher = Matcher(stops);
    std::string text;
    std::string out;
    while (!matcher.stopped() && text.size() < 30) {
      const char next = static_cast<char>('a' + random() % 4);
      text += next;
      matcher.Feed(std::string(1, next), &out);
      if (matcher.stopped()) break;
      size_t hold = 0;
      for (const std::string& stop : stops) {
        for (size_t n = 1; n < stop.size() && n <= text.size(); ++n) {
          if (text.compare(text.size() - n, n, stop, 0, n) == 0) hold = std::max(hold, n);
        }
      }
      CHECK(matcher.held_bytes() == hold);
      CHECK(out == text.substr(0, text.size() - hold));
    }
    CHECK(out + "" == Reference(stops, false, text).text.substr(0, out.size()));
  }
}

TEST_CASE("stop matcher: equals the definition on random text and stops") {
  std::mt19937 random(99);
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(1 + random() % 5);
    for (auto& stop : stops) {
      for (size_t n = 1 + random() % 5; n > 0; --n) stop += static_cast<char>('a' + random() % 3);
    }
    std::string text;
    for (size_t n = random() % 24; n > 0; --n) text += static_cast<char>('a' + random() % 4);
    const bool include = random() % 2 == 0;
    CheckSame(Run(Matcher(stops, include), Split(text, random())), Reference(stops, include, text));
  }
}

TEST_CASE("stop matcher: refuses what could never be honoured") {
  CHECK(StopStrings::Create({"a", ""}, false).status().message() == "stop string 1 is empty");
  CHECK(StopStrings::Create({"\x98\x80"}, false).status().message() ==
        "stop string 0 is not valid UTF-8");
  CHECK(Run(Matcher({}), {"no ", "stops"}).text == "no stops");
}

TEST_CASE("token stop matcher: sequences across steps, longest and first on ties") {
  const auto stops = *TokenStopSequences::Create({{5, 6}, {4, 5, 6}, {9}, {5, 6}, {-1, 7}});
  TokenStopMatcher matcher(stops);
  CHECK_FALSE(matcher.Feed(5));
  CHECK(matcher.Feed(6) == 0);
  CHECK_FALSE(matcher.Feed(4));
  CHECK_FALSE(matcher.Feed(5));
  CHECK(matcher.Feed(6) == 1);
  CHECK(matcher.Feed(9) == 2);
  CHECK_FALSE(matcher.Feed(-1));
  CHECK(matcher.Feed(7) == 4);
  CHECK(TokenStopSequences::Create({{1}, {}}).status().message() == "stop sequence 1 is empty");
}

TEST_CASE("token stop matcher: equals a look at the end of the history") {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::vector<int32_t>> sequences(1 + random() % 4);
    for (auto& sequence : sequences) {
      sequence.resize(1 + random() % 4);
      for (auto& token : sequence) token = static_cast<int32_t>(random() % 3);
    }
    TokenStopMatcher matcher(*TokenStopSequences::Create(sequences));
    std::vector<int32_t> history;
    for (int step = 0; step < 25; ++step) {
      history.push_back(static_cast<int32_t>(random() % 3));
      std::optional<int32_t> expected;
      size_t longest = 0;
      for (size_t i = 0; i < sequences.size(); ++i) {
        const auto& sequence = sequences[i];
        if (sequence.size() <= longest || sequence.size() > history.size()) continue;
        if (!std::equal(sequence.rbegin(), sequence.rend(), history.rbegin())) continue;
        expected = static_cast<int32_t>(i);
        longest = sequence.size();
      }
      CHECK(matcher.Feed(history.back()) == expected);
    }
  }
}

}  // namespace
}  // namespace slipstream
