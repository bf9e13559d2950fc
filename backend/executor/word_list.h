// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "executor/status.h"

namespace slipstream {

using WordList = std::vector<std::vector<int32_t>>;  // token sequences

// Reads the wire format of stop and bad words, a row-major [2, n] tensor of token ids: row 0 holds
// the ids of all words one after another, padded with 0; row 1 holds where each word ends in row 0,
// padded with -1. `size` counts all elements (2 n); 0 gives an empty list.
//
// kInvalidArgument, naming `field` and the column, for: an odd length; an offset after a padding -1
// (additional -1s); an offset above n or negative (out-of-bound offsets); an offset that does not
// exceed the one before it, or a first one of 0 (non-increasing offsets).
StatusOr<WordList> ParseWordList(std::string_view field, const int32_t* data, size_t size);

// The inverse: [2, n] row-major, with n the number of ids, or `min_columns` if that is more (the
// rows of a batch share one n). Empty words cannot be written and are left out.
std::vector<int32_t> EncodeWordList(const WordList& words, size_t min_columns = 0);

}  // namespace slipstream
