// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ side of Slipstream: the Engine, text, and the links to workers.";
  slipstream::BindText(m);
  slipstream::BindEngine(m);
  slipstream::BindExecutor(m);
  slipstream::BindLink(m);
}
