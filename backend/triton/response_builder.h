// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "executor/event.h"
#include "triton/response_plan.h"
#include "triton/tensor.h"

namespace slipstream::triton {

// Appends what `from` reports to `into`: the two events of one sequence become one, as if the
// executor had reported once.
void MergeEvent(Event&& from, Event* into);

// The outputs of one response: `event` of row `row`, shaped and ordered as the wire interface says.
std::vector<OutputTensor> BuildOutputs(const ResponsePlan& plan, int32_t row, Event&& event);

// The last response to a sequence that a stop request ended: successful and, but for the accounting
// that was asked for, empty. In an ensemble the later steps need their tensors: there it holds no
// tokens; and clients of an ensemble find an empty text in it, or where text accumulates the
// event's.
std::vector<OutputTensor> BuildStoppedOutputs(const ResponsePlan& plan, int32_t row, Event&& event);

// IEEE 754 half precision, rounded to nearest even.
uint16_t FloatToHalf(float value);

}  // namespace slipstream::triton
