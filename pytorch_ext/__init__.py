"""Kernels for PyTorch whose float32 training is bit-for-bit the same on every device, and faster.

Replace ``torch.nn`` by ``pytorch_ext.nn``, ``torch.optim`` by ``pytorch_ext.optim`` and ``torch.nn.functional`` by
``pytorch_ext.functional``: names, signatures, defaults and state_dicts are the stock ones.
"""

import torch  # noqa: F401  (before the native library, which is linked against it)

from . import functional, nn, optim, triton_operators  # noqa: F401  (the last registers torch.ops.pytorch_ext_triton)
from .backends import available_backends, backend
from .version import __version__

__all__ = ["__version__", "available_backends", "backend", "functional", "nn", "optim"]
