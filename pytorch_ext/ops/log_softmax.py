"""log_softmax: the logarithm of softmax, without forming it."""

import torch.nn.functional as F

from .paths import choice, is_dynamo_compiling
from .softmax import otherwise


def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    """``torch.nn.functional.log_softmax``, with the arguments and errors of ``softmax``."""
    if not is_dynamo_compiling():
        output = choice.kernels.log_softmax(input, dim, dtype)
        if output is not None:
            return output
    return otherwise("log_softmax", F.log_softmax, input, dim, _stacklevel, dtype)
