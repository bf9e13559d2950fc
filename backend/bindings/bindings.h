// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

namespace slipstream {

// Each adds one area of slipstream._core; module.cc calls them all.

// Token tables, detokenizing, stop matching and word lists.
void BindText(pybind11::module_& m);

// The Engine, its configuration, step plans and results.
void BindEngine(pybind11::module_& m);

// The Executor with a worker process or a scripted worker.
void BindExecutor(pybind11::module_& m);

// The step link: layout and codec of frames, the scripted model, tokenizer processes.
// After BindEngine, whose step plans and results it uses.
void BindLink(pybind11::module_& m);

}  // namespace slipstream
