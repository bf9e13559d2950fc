// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/eventfd.h>

#include <cstdint>

#include "worker_link/unique_fd.h"

namespace slipstream {

// A flag that poll() can wait for. Set from any thread.
class WakeFd {
 public:
  WakeFd() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  int get() const { return fd_.get(); }
  void Set() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
  }
  // Clears the flag; true if it was set.
  bool Clear() {
    uint64_t count;
    return ::read(fd_.get(), &count, sizeof count) == static_cast<ssize_t>(sizeof count);
  }

 private:
  UniqueFd fd_;
};

}  // namespace slipstream
