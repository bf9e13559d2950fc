// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// The kernels for AVX2 and FMA; CMakeLists.txt has the compiler's options.

#include "kernels/attention_rows.h"
#include "kernels/expert_rows.h"

namespace slipstream::kernels {

const RowKernels kAvx2Kernels = {"avx2",  Linear, Widen,   Norm,  Activate,
                                 SoftCap, Route,  Combine, Attend};

}  // namespace slipstream::kernels
