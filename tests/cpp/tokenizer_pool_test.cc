// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/tokenizer_pool.h"

#include <doctest/doctest.h>

#include <new>
#include <string>

#include "allocation_faults.h"
#include "tokenizer_double.h"

namespace slipstream {
namespace {

// Only what is as long as the text fails: JSON needs a little memory to let memory go.
constexpr size_t kLong = 1 << 20;

TEST_CASE("tokenizer pool: a call that runs out of memory gives its process back") {
  TokenizerPoolConfig config;
  config.python = kThisBinary;
  config.tokenizer = "double";
  config.request_timeout_ms = 10'000;  // a process that is not given back fails the test by this
  auto pool = TokenizerPool::Create(config);
  REQUIRE_MESSAGE(pool.ok(), pool.status().message());
  TokenizerRequest request;
  request.text = std::string(kLong, 'x');
  bool struck = true;
  int64_t n = 0;
  while (struck) {
    ++n;
    try {
      const AllocationFault fault(n, kLong);
      const auto reply = (*pool)->Tokenize(request);
      struck = fault.struck();
    } catch (const std::bad_alloc&) {
    }
    const auto next = (*pool)->Tokenize(request);
    REQUIRE_MESSAGE(next.ok(), next.status().message());
    CHECK(next->ids.size() == kLong);
  }
  CHECK(n > 4);  // copies, messages both ways, ids
}

}  // namespace
}  // namespace slipstream
