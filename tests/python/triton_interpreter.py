# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Mends the interpreter that kernels run in where there is no GPU."""

import functools

import numpy as np
import torch


@functools.cache
def mend_interpreter() -> None:
    """Three things that the interpreter of Triton 3.6 gets wrong. Once is enough."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    patch, create_dot = interpreter._patch_lang_tensor, builder.create_dot
    truncate = builder.create_fp_trunc

    def patch_with_index(tensor, scope):
        """Its scalars are arrays of one element, which numpy no longer takes for an integer."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def widened(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot_of_values(self, a, b, *rest):
        """It multiplies the bits of bfloat16 as if they were integers."""
        return create_dot(self, widened(a), widened(b), *rest)

    def create_rounded(self, source, target):
        """It cuts float32 off where bfloat16 ends."""
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return truncate(self, source, target)
        rounded = torch.from_numpy(np.array(source.data)).to(torch.bfloat16).view(torch.int16)
        return interpreter.TensorHandle(rounded.numpy().view(np.uint16), target.scalar)

    interpreter._patch_lang_tensor = patch_with_index
    builder.create_dot = create_dot_of_values
    builder.create_fp_trunc = create_rounded
