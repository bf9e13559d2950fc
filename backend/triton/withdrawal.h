// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "executor/status.h"
#include "triton/model_config.h"

namespace slipstream::triton {

// Makes the server report a model as not ready, and itself with it, for servers older than
// TRITONBACKEND_ModelInstanceReady. Such a server only knows whether a model is loaded, so it is
// told to unload it, and then to load it with a configuration that CheckNotWithdrawn() refuses: to
// the server as a whole a model that was unloaded counts as ready, one that failed to load does
// not, and its repository index shows `why`. The next ordinary load is one like any other.
//
// Needs --model-control-mode=explicit: in other modes the error is the server's refusal. Blocks for
// the two calls, which do not wait for the model to be finalized: a thread may call it that the
// model's finalization joins.
Status Withdraw(const ModelConfig& model, const std::string& why);

// False while the server starts or ends: whatever is asked of it, Withdraw() included, is refused.
bool IsServing(TRITONSERVER_Server* server);

// UNAVAILABLE with the reason, of a model that Withdraw() loads.
Status CheckNotWithdrawn(const ModelConfig& config);

}  // namespace slipstream::triton
