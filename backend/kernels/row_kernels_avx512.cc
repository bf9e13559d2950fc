// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// The kernels for AVX-512 (F, BW, VL, DQ); CMakeLists.txt has the compiler's options.

#include "kernels/attention_rows.h"
#include "kernels/expert_rows.h"

namespace slipstream::kernels {

const RowKernels kAvx512Kernels = {"avx512", Linear, Widen,   Norm,  Activate,
                                   SoftCap,  Route,  Combine, Attend};

}  // namespace slipstream::kernels
