# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Mends the interpreter that kernels run in where there is no GPU."""

import functools

import numpy as np
import torch


def _signed(data: np.ndarray) -> torch.Tensor:
    """Bits that torch can take for any type of the same size."""
    return torch.from_numpy(np.array(data).view(f"int{8 * data.itemsize}"))


@functools.cache
def mend_interpreter() -> None:
    """Four things that the interpreter of Triton 3.6 gets wrong. Once is enough."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    patch, create_dot = interpreter._patch_lang_tensor, builder.create_dot
    truncate, convert = builder.create_fp_trunc, builder.create_fp_to_fp
    torch_types = {
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float16: torch.float16,
        tl.bfloat16: torch.bfloat16,
        tl.float32: torch.float32,
    }

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

    def create_converted(self, source, target, rounding):
        """Its conversions to and from e4m3 do not round to even, nor know subnormals and NaN.

        What e4m3 has no room for becomes NaN: a kernel has to saturate by itself.
        """
        kinds = {source.dtype.scalar, target.scalar}
        if tl.float8e4nv not in kinds:
            return convert(self, source, target, rounding)
        values = _signed(source.data).view(torch_types[source.dtype.scalar])
        if target.scalar == tl.float8e4nv:
            values = values.float()
            values = values.masked_fill(values.abs() > 464, float("nan"))
        converted = values.to(torch_types[target.scalar])
        bits = converted.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[converted.itemsize])
        data = bits.numpy().view(interpreter._get_np_dtype(target))
        return interpreter.TensorHandle(data, target.scalar)

    interpreter._patch_lang_tensor = patch_with_index
    builder.create_dot = create_dot_of_values
    builder.create_fp_trunc = create_rounded
    builder.create_fp_to_fp = create_converted
