// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "executor/status.h"
#include "executor/step.h"

namespace slipstream {

// The msgpack maps that a worker sends (worker_link/step_frame.h), checked. kInternal names the key
// at fault.

StatusOr<WorkerInfo> ParseWorkerHello(const nlohmann::json& hello);

// Adds the counts of a STATS map, of which there must be as many as `expert_tokens` has, to those.
Status AddWorkerStats(const nlohmann::json& stats, std::vector<uint64_t>* expert_tokens);

}  // namespace slipstream
