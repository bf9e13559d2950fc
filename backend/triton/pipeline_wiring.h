// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "executor/status.h"
#include "triton/request_data.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {

// Where an input of role `pipeline` goes: the wiring of the ensemble that the pipeline stands for.
struct Wire {
  const char* name;    // as clients of the ensemble know it
  Role step;           // kTokenize or kLlm; kPipeline: it goes no further
  const char* tensor;  // of that role
};

// In the order of the ensemble's inputs; then those that `tensorrt_llm_bls` alone declares.
const std::vector<Wire>& PipelineWires();

// One request of the pipeline as its two steps get it, tensors under the steps' names, and what
// neither gets. No bytes are copied: all refer to the same Triton request.
struct StepRequests {
  RequestData tokenize;
  RequestData llm;  // also has the id, the parameters, the timeout and the requested outputs
  RequestData own;
};
StatusOr<StepRequests> SplitRequest(RequestData&& request, bool batched);

// The same error for a client of the pipeline: where the message begins with a step's name of a
// field, the client's own follows it, as in "runtime_top_k (top_k): -1 is outside …".
Status NamedForClient(const Status& status);

}  // namespace slipstream::triton
