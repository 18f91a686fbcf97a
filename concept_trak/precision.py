"""Narrow numbers stay in the network: what is added up, divided, or carried from step to step is at least float32.

bfloat16 keeps 8 bits of a number and float16 keeps 11 but ends at 6e-8. A network bears that, since it was trained
among such errors; x_t carried over 45 updates, x_0 divided by a small alpha, and a v of size 1 / D do not.
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.promote_types(x.dtype, torch.float32))
