// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace slipstream {

// Makes one allocation fail, of the calling thread alone: std::bad_alloc out of operator new. Only
// in a binary that replaces operator new (triton_abi_test.cc).
class AllocationFault {
 public:
  // The n-th from now on, from 1, of those that take so many bytes at least.
  explicit AllocationFault(int64_t n, std::size_t at_least = 0);
  ~AllocationFault();  // ends it
  AllocationFault(const AllocationFault&) = delete;
  AllocationFault& operator=(const AllocationFault&) = delete;

  bool struck() const;
  int64_t counted() const;  // so far, while it has not struck

 private:
  const int64_t n_;
};

// Allocations meanwhile are not counted and do not fail: the server's side of the API, which is not
// what is tested.
class FaultPause {
 public:
  FaultPause() { ++depth; }
  ~FaultPause() { --depth; }
  FaultPause(const FaultPause&) = delete;
  FaultPause& operator=(const FaultPause&) = delete;

  static inline thread_local int depth = 0;
};

}  // namespace slipstream
