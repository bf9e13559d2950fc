// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// The kernels for any processor; CMakeLists.txt has the compiler's options.

#include "kernels/attention_rows.h"
#include "kernels/expert_rows.h"

namespace slipstream::kernels {

const RowKernels kGenericKernels = {"generic", Linear, Widen,   Norm,  Activate,
                                    SoftCap,   Route,  Combine, Attend};

}  // namespace slipstream::kernels
