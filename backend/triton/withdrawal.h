// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "executor/status.h"
#include "triton/model_config.h"

namespace slipstream::triton {

// Makes the server report an `llm` and the pipelines over it as not ready, and itself with them,
// for servers older than TRITONBACKEND_ModelInstanceReady. Such a server only knows whether a model
// is loaded, so it is told to unload them, and then to load them with configurations that
// CheckNotWithdrawn() refuses: to the server as a whole a model that was unloaded counts as ready,
// one that failed to load does not, and its repository index shows `why`. The next ordinary load is
// one like any other.
//
// Needs --model-control-mode=explicit: in other modes the error is the server's refusal. Blocks for
// the calls, which do not wait for the models to be finalized: a thread may call it that the
// finalization of the `llm` joins.
Status Withdraw(const ModelConfig& llm, const std::vector<ModelConfig>& pipelines,
                const std::string& why);

// False while the server starts or ends: whatever is asked of it, Withdraw() included, is refused.
bool IsServing(TRITONSERVER_Server* server);

// UNAVAILABLE with the reason, of a model that Withdraw() loads.
Status CheckNotWithdrawn(const ModelConfig& config);

}  // namespace slipstream::triton
