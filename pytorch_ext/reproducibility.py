"""check_reproducible(): names every float operator that runs outside the numerics contract."""

import collections
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .flops import NAMESPACES
from .report import Report

# One correctly rounded operation per element, or none: the same on every device.
EXACT = set(
    """
abs add amax amin ceil clamp clamp_max clamp_min div floor fmod hardtanh heaviside isinf isnan masked_fill max
maximum min minimum mul nan_to_num neg reciprocal relu round rsub sgn sign sort sqrt sub threshold_backward topk
trunc where
""".split()
)
# Makes, moves or converts values and computes none.
MOVES = set(
    """
_local_scalar_dense _reshape_alias _to_copy _unsafe_view alias arange as_strided cat clone constant_pad_nd copy
detach diagonal diagonal_scatter embedding empty empty_like empty_strided expand eye fill flip full full_like gather
index index_select lift lift_fresh narrow new_empty new_empty_strided new_full new_ones new_zeros ones ones_like
permute pin_memory repeat reshape resize roll scalar_tensor scatter select select_backward select_scatter set slice
slice_backward slice_scatter split split_with_sizes squeeze stack t take transpose tril triu unbind unfold unsqueeze
view zero zeros zeros_like
""".split()
)
# These have a factor.
SCALED = {"add", "sub", "rsub"}


@dataclass
class Row:
    """A float operator outside the contract: how often it ran, on what, and why it is outside."""

    operator: str
    calls: int
    dtype: str
    device: str
    why: str


class Reproducibility(Report, TorchDispatchMode):
    """``with check_reproducible() as found:`` watches the block; true where nothing outside the contract ran."""

    title = "pytorch_ext.check_reproducible: float operators outside the contract"
    row = Row

    def __init__(self):
        Report.__init__(self)
        TorchDispatchMode.__init__(self)
        self._counts, self.inside = collections.Counter(), 0

    def __bool__(self):
        return not self.rows

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # An operator over lists works in place and returns nothing.
        floats = float_tensors(result) or (float_tensors(args) if function._schema.is_mutable else [])
        if floats:
            why = outside(function, args, kwargs or {}, floats[0])
            if why is None:
                self.inside += 1
            else:
                key = (str(function).removesuffix(".default"), str(floats[0].dtype)[6:], floats[0].device.type, why)
                self._counts[key] += 1
        return result

    @property
    def rows(self):
        return [Row(name, count, dtype, device, why) for (name, dtype, device, why), count in self._counts.items()]

    @rows.setter
    def rows(self, rows):
        assert not rows

    def summary(self):
        if self:
            return f"nothing: all {self.inside} float operators are inside the contract"
        return f"{sum(self._counts.values())} calls outside, {self.inside} float operators inside the contract"


def check_reproducible():
    """A context that names every float operator inside it whose bits the numerics contract does not define.

    ``with pytorch_ext.check_reproducible() as found: step()``; afterwards ``found`` is true where the block gives the
    same bits on every device, and prints the operators that keep it from that, backward passes and optimisers included.
    Kernels run as ever. Those of an optimiser on the Triton path are no operators and are not seen: they are inside.
    """
    return Reproducibility()


def float_tensors(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.is_floating_point()]


def outside(function, args, kwargs, result):
    """Why an operator is outside the contract, or None."""
    namespace, _, name = function._schema.name.partition("::")
    if namespace in NAMESPACES:
        dtype = str(result.dtype).removeprefix("torch.")
        return None if result.dtype == torch.float32 else f"the contract is for float32, this is {dtype}"
    base = name.removesuffix("_").removeprefix("_foreach_").removesuffix("_copy")
    if base in MOVES or name in MOVES:
        return None
    if torch.Tag.nondeterministic_seeded in function.tags:
        return "torch's random numbers are others on another device"
    if base in SCALED and alpha_of(function, args, kwargs) != 1:
        return "alpha: multiplied and added in one rounding or in two"
    if base == "div" and is_number(args[1]):
        return "division by a number: a device multiplies by its reciprocal"
    return None if base in EXACT else "no operator of this package: order and rounding are the device's"


def is_number(divisor):
    return not isinstance(divisor, torch.Tensor | list) or (isinstance(divisor, torch.Tensor) and divisor.dim() == 0)


def alpha_of(function, args, kwargs):
    if "alpha" in kwargs:
        return kwargs["alpha"]
    names = [argument.name for argument in function._schema.arguments]
    at = names.index("alpha") if "alpha" in names else len(args)
    return args[at] if at < len(args) else 1
