// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "executor/sequence.h"
#include "executor/step.h"

namespace slipstream {

// Adds what the worker must know of a sequence that enters its slot. `send_history`: the worker
// wants every sequence's tokens, not only those whose sampling looks at them.
void AddAdmitRecord(const Sequence& sequence, bool send_history, StepPlan* plan);

}  // namespace slipstream
