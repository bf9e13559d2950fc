// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
//
// libFuzzer's entry points for the target SLIPSTREAM_FUZZ_TARGET.
#include <cstdlib>
#include <string_view>

#include "fuzz_target.h"
#include "tokenizer_double.h"

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc > 1 && std::string_view((*argv)[1]) == "-m") {
    std::_Exit(slipstream::RunTokenizerDouble());
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const slipstream::fuzz::FuzzTarget* target =
      slipstream::fuzz::FindTarget(SLIPSTREAM_FUZZ_TARGET);
  target->run(data, size);
  return 0;
}
