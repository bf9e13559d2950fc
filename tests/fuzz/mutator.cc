// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "mutator.h"

#include <cstring>
#include <string_view>

#include "tree_mutator.h"

namespace slipstream::fuzz {
namespace {

using simulation::Dice;

constexpr size_t kMaxBytes = 1 << 16;

size_t Index(Dice* dice, size_t size) { return static_cast<size_t>(dice->Next() % size); }

// Any piece of the text, and more often a short one.
std::string_view Piece(std::string_view text, Dice* dice) {
  const size_t begin = Index(dice, text.size());
  const size_t most = dice->Chance(0.7) ? 8 : text.size();
  return text.substr(begin, 1 + Index(dice, most));
}

void PutNumber(std::string* text, Dice* dice) {
  const int64_t number =
      dice->Pick<int64_t>({0, 1, -1, 2, 127, 128, 255, 256, 65535, 65536, INT32_MAX, INT32_MIN,
                           INT64_MAX, INT64_MIN, 0x7FC00000 /* NaN */, 0x7F800000 /* infinity */});
  const size_t width = dice->Pick<size_t>({1, 2, 4, 8});
  if (text->size() < width) return;
  std::memcpy(text->data() + Index(dice, text->size() - width + 1), &number, width);
}

void Change(std::string* text, const std::vector<std::string>& seeds, Dice* dice) {
  if (text->empty()) text->push_back('\0');
  const size_t at = Index(dice, text->size());
  switch (dice->Int(0, 7)) {
    case 0:
      (*text)[at] = static_cast<char>((*text)[at] ^ (1 << dice->Int(0, 7)));
      return;
    case 1:
      (*text)[at] = static_cast<char>(dice->Next());
      return;
    case 2:
      return PutNumber(text, dice);
    case 3:
      text->erase(at, Piece(*text, dice).size());
      return;
    case 4:
      text->insert(at, std::string(Piece(*text, dice)));
      return;
    case 5:
      text->insert(at, static_cast<size_t>(dice->Int(1, 8)), static_cast<char>(dice->Next()));
      return;
    case 6:
      text->resize(at);
      return;
    default:
      const std::string& other = seeds[Index(dice, seeds.size())];
      if (!other.empty()) text->insert(at, std::string(Piece(other, dice)));
  }
}

}  // namespace

std::string Mutant(const std::vector<std::string>& seeds, Dice* dice) {
  std::string text = seeds[Index(dice, seeds.size())];
  if (dice->Chance(0.4) && ChangeTree(&text, dice) && dice->Chance(0.8)) return text;
  for (int32_t left = dice->Pick({0, 1, 1, 2, 3, 8, 32}); left > 0; --left) {
    Change(&text, seeds, dice);
  }
  if (text.size() > kMaxBytes) text.resize(kMaxBytes);
  return text;
}

}  // namespace slipstream::fuzz
