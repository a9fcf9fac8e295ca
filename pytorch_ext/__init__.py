"""Kernels for PyTorch whose float32 training is bit-for-bit the same on every device, and faster.

Replace ``torch.nn`` by ``pytorch_ext.nn``, ``torch.optim`` by ``pytorch_ext.optim`` and ``torch.nn.functional`` by
``pytorch_ext.functional``: names, signatures, defaults and state_dicts are the stock ones.
"""

import torch  # noqa: F401  (before the native library, which is linked against it)

from . import compilation, flops, functional, nn, optim, triton_operators  # noqa: F401  (the last registers operators)
from .backends import available_backends, backend
from .conversion import convert, revert
from .explanation import explain
from .reproducibility import check_reproducible
from .train import TrainStep
from .verification import verify
from .version import __version__

compilation.make_known()
flops.make_known()

__all__ = [
    "TrainStep",
    "__version__",
    "available_backends",
    "backend",
    "check_reproducible",
    "convert",
    "explain",
    "functional",
    "nn",
    "optim",
    "revert",
    "verify",
]
