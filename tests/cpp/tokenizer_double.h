// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace slipstream {

// A tokenizer process without Python: every byte (of messages: of their JSON) is a token, of a
// vocabulary of 256 without special ones. The test binary becomes one when it is started like
// Python's module, so that tests name itself as their Python (kThisBinary).
inline constexpr char kThisBinary[] = "/proc/self/exe";
int RunTokenizerDouble();

}  // namespace slipstream
