// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <string_view>

#include "kernels/row_kernels.h"

namespace slipstream::kernels {
namespace {

bool Runs(const RowKernels& kernels) {
#if defined(__x86_64__)
  if (&kernels == &kAvx512Kernels) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  if (&kernels == &kAvx2Kernels) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return &kernels == &kGenericKernels;
}

}  // namespace

const RowKernels* FindRowKernels(const char* name) {
  const std::string_view wanted = name;
  for (const RowKernels* kernels : {
#if defined(__x86_64__)
           &kAvx512Kernels, &kAvx2Kernels,
#endif
           &kGenericKernels}) {
    if ((wanted.empty() || wanted == kernels->name) && Runs(*kernels)) return kernels;
  }
  return nullptr;
}

int64_t AttentionScratch(const AttentionArgs& args, int64_t queries, int64_t positions) {
  constexpr int64_t kPadding = 32;  // of the positions, to multiples of sixteen at both ends
  return queries * args.queries_per_kv * (args.dim + args.value_dim + 1 + positions + kPadding);
}

int64_t RouteScratch(const RouteArgs& args) {
  constexpr int64_t kPadding = 16;  // of the scores, to a multiple of it
  return 2 * args.num_experts + kPadding + args.num_groups;
}

}  // namespace slipstream::kernels
