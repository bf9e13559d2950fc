// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "tree_mutator.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace slipstream::fuzz {
namespace {

using nlohmann::json;
using simulation::Dice;

size_t Index(Dice* dice, size_t size) { return static_cast<size_t>(dice->Next() % size); }

// Every value in the tree, its root first.
void Collect(json* value, std::vector<json*>* all) {
  all->push_back(value);
  if (!value->is_structured()) return;
  for (json& child : *value) Collect(&child, all);
}

json OddValue(Dice* dice) {
  return dice->Pick<json>({nullptr, true, 0, 1, -1, 255, 65536, INT32_MAX, INT64_MIN, UINT64_MAX,
                           0.5, "", "x", json::array(), json::object(), json::array({0}),
                           json::binary({}), json::binary({1, 2, 3})});
}

void ChangeBytes(json* value, Dice* dice) {
  auto& bytes = value->get_binary();
  const size_t size = bytes.size();
  switch (dice->Int(0, 2)) {
    case 0:  // by one unit of the array that it is, or less
      bytes.resize(size + static_cast<size_t>(dice->Int(1, 8)));
      return;
    case 1:
      bytes.resize(size - std::min(size, static_cast<size_t>(dice->Int(1, 8))));
      return;
    default:
      if (size > 0) bytes[Index(dice, size)] = static_cast<uint8_t>(dice->Int(0, 8));
  }
}

void Change(json* root, Dice* dice) {
  std::vector<json*> all;
  Collect(root, &all);
  json& value = *all[Index(dice, all.size())];
  if (value.is_binary() && dice->Chance(0.8)) return ChangeBytes(&value, dice);
  if (value.is_structured() && !value.empty() && dice->Chance(0.6)) {
    const auto at = std::next(value.begin(), static_cast<ptrdiff_t>(Index(dice, value.size())));
    if (value.is_array() && dice->Chance(0.5)) {
      value.push_back(json(*at));
    } else {
      value.erase(at);
    }
    return;
  }
  if (&value != root) value = dice->Chance(0.3) ? *all[Index(dice, all.size())] : OddValue(dice);
}

std::optional<json> Map(std::string_view text, bool packed) {
  const auto first = static_cast<uint8_t>(text[0]);
  if (packed ? (first & 0xF0) != 0x80 && first != 0xDE : first != '{') return std::nullopt;
  json value = packed ? json::from_msgpack(text.begin(), text.end(), true, false)
                      : json::parse(text.begin(), text.end(), nullptr, false);
  return value.is_object() ? std::optional<json>(std::move(value)) : std::nullopt;
}

std::string Written(const json& value, bool packed) {
  if (!packed) return value.dump(-1, ' ', false, json::error_handler_t::replace);
  const std::vector<uint8_t> bytes = json::to_msgpack(value);
  return {bytes.begin(), bytes.end()};
}

}  // namespace

bool ChangeTree(std::string* text, Dice* dice) {
  constexpr size_t kMostBefore = 64;
  for (size_t begin = 0; begin < std::min(text->size(), kMostBefore); ++begin) {
    for (const bool packed : {false, true}) {
      auto tree = Map(std::string_view(*text).substr(begin), packed);
      if (!tree) continue;
      for (int32_t left = dice->Int(1, 3); left > 0; --left) Change(&*tree, dice);
      text->replace(begin, std::string::npos, Written(*tree, packed));
      return true;
    }
  }
  return false;
}

}  // namespace slipstream::fuzz
