// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

#include "executor/event.h"
#include "executor/executor_metrics.h"
#include "executor/request.h"

namespace slipstream {

// A RequestSpec from keyword arguments named like its members (sampling ones without a prefix).
// Throws ValueError naming an unknown field or one of the wrong type.
RequestSpec SpecFromKwargs(const pybind11::kwargs& fields);

pybind11::dict EventDict(const Event& event);
pybind11::dict MetricsDict(const MetricsSnapshot& snapshot);

}  // namespace slipstream
