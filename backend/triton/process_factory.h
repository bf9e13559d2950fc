// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "executor/status.h"
#include "executor/token_table.h"
#include "executor/worker_port.h"
#include "triton/parameters.h"
#include "worker_link/tokenizer_pool.h"

namespace slipstream::triton {

// The processes that a role needs, from its parameters.

// The worker, not started yet.
StatusOr<std::unique_ptr<WorkerPort>> MakeWorkerPort(const LlmParameters& parameters);

// Started and ready.
StatusOr<std::unique_ptr<TokenizerPool>> MakeTokenizerPool(const TokenizerParameters& parameters,
                                                           int32_t num_processes);

// The decoding side of a tokenizer: takes it from a tokenizer process, which then ends.
StatusOr<std::shared_ptr<const TokenTable>> LoadTokenTable(const TokenizerParameters& parameters);

}  // namespace slipstream::triton
