"""One call made of torch's function and of this package's: result, derivatives, warnings and errors must agree."""

import warnings

import torch
from torch.utils._pytree import tree_leaves, tree_map

torch.set_warn_always(True)  # a warning that torch gives once would be given to the first of the two alone


def is_float(value):
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def with_warnings(function, *args, **kwargs):
    """(result, the categories of the warnings given)."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        result = function(*args, **kwargs)
    return result, [w.category for w in given]


def like(t, seed):
    """A random tensor with numbers that every dtype holds."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-8, 9, t.shape, generator=generator).to(torch.float32) / 8
    return values.to(t.dtype)


def differentiate(outputs, inputs, seed, create_graph):
    """The gradients of the inputs for random gradients of the outputs, and those random gradients."""
    outputs = [t for t in outputs if is_float(t) and t.requires_grad]
    if not outputs or not inputs:
        return [None] * len(inputs), []
    grads = [like(t, seed + i).requires_grad_(create_graph) for i, t in enumerate(outputs)]
    found = torch.autograd.grad(outputs, inputs, grads, create_graph=create_graph, allow_unused=True)
    return list(found), grads


def derivatives(function, args, kwargs, orders):
    """({name: tensor} of the result and of its derivatives up to that order, the warnings of the call)."""
    inputs = inputs_of(args, kwargs)
    result, given = with_warnings(function, *args, **kwargs)
    outputs = tree_leaves(result)
    found = {f"output {i}": t for i, t in enumerate(outputs)}
    if orders >= 1:
        first, grads = differentiate(outputs, inputs, 1, create_graph=orders > 1)
        found |= {f"gradient {i}": t for i, t in enumerate(first)}
    if orders >= 2:
        second, _ = differentiate([t for t in first if t is not None], [*inputs, *grads], 2, create_graph=False)
        found |= {f"second derivative {i}": t for i, t in enumerate(second)}
    return found, given


def inputs_of(*values):
    """The tensors that require a gradient, each once."""
    found = {id(t): t for t in tree_leaves(values) if isinstance(t, torch.Tensor) and t.requires_grad}
    return list(found.values())


def in_double(value):
    if not is_float(value):
        return value
    to = torch.complex128 if value.is_complex() else torch.float64
    return value.detach().to(to).requires_grad_(value.requires_grad)


def assert_agree(ours, stock, *args, orders=2, roundings=4, **kwargs):
    """Both functions give the same: dtype, shape, strides, values, derivatives, None where torch has none, warnings.

    Values agree to torch.testing's tolerances, or come as close to the float64 result as torch's do, within a factor of
    2 or so many roundings of the largest number: more for a layer of many operators, where chance decides.
    """
    expected, expected_warnings = derivatives(stock, args, kwargs, orders)
    found, given = derivatives(ours, args, kwargs, orders)
    assert given == expected_warnings, f"warnings {given}, torch gives {expected_warnings}"
    assert found.keys() == expected.keys()
    exact = None
    for name, theirs in expected.items():
        mine = found[name]
        if not isinstance(theirs, torch.Tensor) or not isinstance(mine, torch.Tensor):
            assert is_nothing(mine) and is_nothing(theirs), f"{name}: {mine}, torch gives {theirs}"
            continue
        what = f"{name}: {mine.dtype} {tuple(mine.shape)}, torch gives {theirs.dtype} {tuple(theirs.shape)}"
        assert (mine.dtype, mine.shape, mine.device) == (theirs.dtype, theirs.shape, theirs.device), what
        assert mine.requires_grad == theirs.requires_grad, f"{name}: requires_grad is {mine.requires_grad}"
        if name.startswith("output"):
            assert mine.stride() == theirs.stride(), f"{name}: {mine.stride()}, torch gives {theirs.stride()}"
        if close(mine, theirs):
            continue
        if exact is None:
            exact, _ = derivatives(stock, *tree_map(in_double, (args, kwargs)), orders)
        assert_as_accurate(mine, theirs, exact[name], roundings, name)


def is_nothing(value):
    """None, or a gradient of zeros: both say that nothing depends on the argument."""
    return value is None or (isinstance(value, torch.Tensor) and not value.any())


def close(mine, theirs):
    try:
        torch.testing.assert_close(mine, theirs, equal_nan=True)
    except AssertionError:
        return False
    return True


def assert_as_accurate(mine, theirs, exact, roundings, name):
    error, allowed = (mine - exact).abs().max(), 2 * (theirs - exact).abs().max()
    rounding = torch.finfo(mine.dtype).eps / 2 * exact.abs().max()
    assert error <= max(allowed, roundings * rounding), f"{name}: error {error:.3g}, torch's {allowed / 2:.3g}"


def error_of(function, *args, **kwargs):
    """The class of what is raised, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None
