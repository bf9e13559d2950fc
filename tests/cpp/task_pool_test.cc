// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "kernels/task_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace slipstream::kernels {
namespace {

TEST_CASE("task pool: every task is done once, by the time Run returns") {
  for (const int threads : {1, 2, 5}) {
    TaskPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const int64_t count : {0, 1, 2, 3, 100}) {
      for (int round = 0; round < 50; ++round) {
        std::vector<int> done(count);  // not atomic: a task has one thread
        std::atomic<int> strangers{0};
        pool.Run(count, [&](int64_t i, int thread) {
          ++done[i];
          if (thread < 0 || thread >= threads) ++strangers;
        });
        CHECK(done == std::vector<int>(count, 1));
        CHECK(strangers == 0);
      }
    }
  }
}

TEST_CASE("task pool: threads that sleep are woken") {
  TaskPool pool(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // longer than helpers spin
    std::atomic<int64_t> sum{0};
    pool.Run(1000, [&](int64_t i, int) { sum += i; });
    CHECK(sum == 999 * 1000 / 2);
  }
}

}  // namespace
}  // namespace slipstream::kernels
