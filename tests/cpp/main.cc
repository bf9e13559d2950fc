// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#define DOCTEST_CONFIG_IMPLEMENT
#include <string_view>

#include "doctest/doctest.h"
#include "tokenizer_double.h"

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "-m") return slipstream::RunTokenizerDouble();
  return doctest::Context(argc, argv).run();
}
