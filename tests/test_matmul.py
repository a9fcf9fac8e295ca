"""matmul: torch.matmul's shapes, gradients, second derivatives, on every path, instruction set and thread count."""

import pytest
import torch
from accuracy import DTYPES, PRODUCT_TERMS, assert_accurate, assert_all_same_bits, assert_same_bits
from conftest import needs_native, operators
from hypothesis import given, settings
from hypothesis import strategies as st
from spec import matmul as spec

from pytorch_ext.backends import choice
from pytorch_ext.functional import matmul

SHAPES = [
    ((3,), (3,)),
    ((9000,), (9000,)),
    ((300,), (300, 5)),
    ((4, 3), (3,)),
    ((1, 1), (1, 1)),
    ((37, 1), (1, 70)),
    ((7, 257), (257, 33)),
    ((64, 300), (300, 10)),
    ((2, 5, 3), (3, 4)),
    ((5, 3), (2, 3, 4)),
    ((3,), (2, 3, 4)),
    ((2, 5, 3), (3,)),
    ((2, 5, 3), (2, 3, 4)),
    ((2, 1, 5, 3), (6, 3, 4)),
    ((70, 2, 3), (1, 3, 2)),
    ((1, 2, 3), (70, 3, 2)),
    ((3, 1, 2, 4, 3), (5, 1, 3, 2)),
    ((0, 3), (3, 4)),
    ((4, 0), (0, 3)),
    ((4, 3), (3, 0)),
    ((0, 2, 3), (3, 4)),
    ((0, 2, 3), (1, 3, 4)),
    ((0,), (0,)),
    ((70, 1100), (1100,)),
    ((3, 1024), (1024, 40)),
]


def make(*shape, dtype=torch.float64, grad=True):
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)


def magnitudes(a, b):
    """Sums of |terms| of the output and of both gradients, for |output gradient| of at most 6."""
    a, b = (t.detach().abs().requires_grad_() for t in (a, b))
    output = torch.matmul(a, b)
    return [output.detach(), *torch.autograd.grad(output, (a, b), torch.full_like(output, 6))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_accurate(path, dtype):
    for a_shape, b_shape in SHAPES:
        a, b = make(*a_shape), make(*b_shape)
        assert_accurate(matmul, torch.matmul, [a, b], dtype, [2 * m for m in magnitudes(a, b)], PRODUCT_TERMS)


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES, ids=str)
def test_bits_are_the_specification_s_on_every_instruction_set(each_cpu, a_shape, b_shape):
    a, b = make(*a_shape, dtype=torch.float32), make(*b_shape, dtype=torch.float32)
    g = torch.randn(torch.matmul(a, b).shape)

    def run():
        output = matmul(a, b)
        return [output, *torch.autograd.grad(output, (a, b), g)]

    results = each_cpu(run)
    assert_all_same_bits(results)
    arrays = [t.detach().numpy() for t in (a, b)]
    expected = [spec.forward(*arrays), *spec.backward(g.numpy(), *arrays)]
    for name, ours, theirs in zip(("output", "dinput", "dother"), next(iter(results.values())), expected, strict=True):
        assert_same_bits(ours, theirs, name)


def test_special_values_have_the_same_bits_everywhere(each_cpu):
    a, b = make(6, 300, dtype=torch.float32, grad=False), make(300, 20, dtype=torch.float32, grad=False)
    a[0, 0], a[1, 1], a[2, 2], a[3], a[4] = float("nan"), float("inf"), float("-inf"), 1e-40, -0.0
    assert_all_same_bits(each_cpu(lambda: [matmul(a, b), matmul(b.T, a.T)]))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("length", "distance"), [(512, 512), (700, 1024), (1024, 1024), (1300, 2048), (2330, 3072)])
def test_lines_that_share_sets_of_the_cache_have_the_bits_of_lines_that_do_not(each_cpu, length, distance, dtype):
    lines = torch.randn(70, distance).to(dtype)[:, :length]
    apart = torch.randn(70, length + 8).to(dtype)[:, :length].copy_(lines)
    x = torch.randn(4, length).to(dtype)

    def run():
        return [matmul(x[:rows], lines[:count].T) for rows in range(1, 5) for count in (32, 70)]

    results = each_cpu(run)
    assert_all_same_bits(results)
    expected = [matmul(x[:rows], apart[:count].T) for rows in range(1, 5) for count in (32, 70)]
    for ours, theirs in zip(next(iter(results.values())), expected, strict=True):
        assert_same_bits(ours, theirs)


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "every second": lambda t: torch.stack((t, t), -1).flatten(-2)[..., ::2],
    "offset": lambda t: torch.cat((t[:1], t))[1:],
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(2, 2), (3, 2), (2, 3), (3, 3)]),
    st.tuples(*[st.integers(1, 9)] * 3, st.integers(0, 300)),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_any_layout_gives_the_bits_of_contiguous_copies(dims, sizes, a_layout, b_layout):
    batch, m, n, k = sizes
    a = LAYOUTS[a_layout](torch.randn((batch, m, k)[3 - dims[0] :])).requires_grad_()
    b = LAYOUTS[b_layout](torch.randn((batch, k, n)[3 - dims[1] :])).requires_grad_()
    copies = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in (a, b)]
    assert all(t.is_contiguous() for t in copies)
    output, expected = matmul(a, b), matmul(*copies)
    assert_same_bits(output, expected)
    # sum()'s gradient is expanded: every stride 0
    for ours, theirs in zip(
        torch.autograd.grad(output.sum(), (a, b)), torch.autograd.grad(expected.sum(), copies), strict=True
    ):
        assert_same_bits(ours, theirs)


def test_a_matrix_does_not_depend_on_its_batch(path):
    a, b = make(5, 30, 300, dtype=torch.float32, grad=False), make(5, 300, 20, dtype=torch.float32, grad=False)
    whole = matmul(a, b)
    for i in range(5):
        assert_same_bits(matmul(a[i], b[i]), whole[i])
    assert_same_bits(matmul(a, b[0])[3], matmul(a[3], b[0]))


@pytest.mark.parametrize(
    ("a_shape", "b_shape"), [s for s in SHAPES if 0 not in s[0] and max(*s[0], *s[1]) < 10], ids=str
)
def test_first_and_second_derivatives_match_finite_differences(path, a_shape, b_shape):
    inputs = (make(*a_shape), make(*b_shape))
    assert torch.autograd.gradcheck(matmul, inputs)
    assert torch.autograd.gradgradcheck(matmul, inputs)
    assert torch.autograd.gradgradcheck(lambda a: matmul(a, inputs[1].detach()), inputs[:1])
    assert torch.autograd.gradgradcheck(lambda b: matmul(inputs[0].detach(), b), inputs[1:])
    assert torch.autograd.gradcheck(lambda *t: matmul(*t).sum(), inputs)


def test_create_graph_leaves_first_order_bits_alone(path):
    for a_shape, b_shape in SHAPES:
        a, b = make(*a_shape, dtype=torch.float32), make(*b_shape, dtype=torch.float32)
        loss = matmul(a, b).square().sum()
        plain = torch.autograd.grad(loss, (a, b), retain_graph=True)
        for x, y in zip(plain, torch.autograd.grad(loss, (a, b), create_graph=True), strict=True):
            assert_same_bits(x, y)


def test_gradients_only_where_required(path):
    for wanted in [(True, False), (False, True)]:
        tensors = [make(2, 3, 4, grad=wanted[0]), make(4, 5, grad=wanted[1])]
        matmul(*tensors).sum().backward()
        assert [t.grad is not None for t in tensors] == list(wanted)
    x = make(3, 3)
    matmul(x, x).sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad((x @ x).sum(), x)[0])
    with torch.inference_mode():
        assert matmul(make(3, 4), make(4, 5)).is_inference()


def test_backward_twice_accumulates_and_in_place_changes_are_noticed(path):
    a, b = make(3, 4), make(4, 5)
    loss = matmul(a, b).sum()
    loss.backward(retain_graph=True)
    first = a.grad.clone()
    loss.backward()
    torch.testing.assert_close(a.grad, 2 * first)
    c = b.detach().clone()
    output = matmul(a, c)
    c.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(("a_shape", "b_shape"), [((3, 4), (4, 5)), ((4,), (2, 4, 5)), ((2, 3, 4), (4,))])
def test_registered_operator_and_compilation(path, a_shape, b_shape):
    inputs = (make(*a_shape, dtype=torch.float32), make(*b_shape, dtype=torch.float32))
    torch.library.opcheck(operators().matmul, inputs)
    compiled = torch.compile(matmul, fullgraph=True, backend="aot_eager")
    outputs = matmul(*inputs), compiled(*inputs)
    assert_same_bits(*outputs)
    for x, y in zip(*(torch.autograd.grad(t.square().sum(), inputs) for t in outputs), strict=True):
        assert_same_bits(x, y)


def test_functional_transforms_take_the_stock_composition(path):
    a, b = make(3, 4, grad=False), make(4, 5, grad=False)
    torch.testing.assert_close(torch.func.grad(lambda b: matmul(a, b).sum())(b), a.sum(0)[:, None].expand(4, 5))
    torch.testing.assert_close(torch.func.vmap(lambda row: matmul(row, b))(a), a @ b)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64])
def test_other_dtypes_take_the_stock_operator(path, dtype):
    a, b = torch.arange(6).view(2, 3).to(dtype), torch.arange(3).to(dtype)
    assert choice.kernels.matmul(a, b) is None
    assert torch.equal(matmul(a, b), torch.matmul(a, b))


def test_autocast_and_torch_s_precision_flags_are_obeyed(path):
    a, b = make(3, 4, dtype=torch.float32), make(4, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul(a, b).dtype == torch.bfloat16
        assert matmul(a.double(), b.double()).dtype == torch.float64
        assert matmul(a.bfloat16(), b).dtype == torch.bfloat16
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert choice.kernels.matmul(a, b) is None
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 5), RuntimeError, r"input \(\.\.\., M, K\) and .*, got \(2, 3\) and \(4, 5\)"),
        (torch.ones(2, 3), torch.ones(2), RuntimeError, r".* got \(2, 3\) and \(2,\)"),
        (torch.ones(()), torch.ones(2), RuntimeError, "input and other of at least 1 dimension, got 0 and 1"),
        (torch.ones(2, 3, 4), torch.ones(3, 4, 5), RuntimeError, r"batch dimensions that broadcast, got \(2, 3, 4\)"),
        (torch.ones(2, 3), torch.ones(3).double(), RuntimeError, "other of torch.float32 as input, got torch.float64"),
        (torch.ones(2, 3), [1.0], TypeError, "other to be a Tensor, got list"),
    ],
)
def test_bad_arguments_are_named(path, a, b, error, message):
    with pytest.raises(error, match=f"matmul: expected {message}"):
        matmul(a, b)


@needs_native
@pytest.mark.parametrize(
    ("a_shape", "b_shape", "wrong"), [((3,), (3,), (1,)), ((4, 3), (3, 2), (2, 4)), ((4, 3), (3,), ())]
)
def test_the_backward_operator_refuses_gradients_of_another_shape(a_shape, b_shape, wrong):
    with pytest.raises(RuntimeError, match="matmul_backward: expected grad"):
        torch.ops.pytorch_ext.matmul_backward(torch.ones(wrong), torch.ones(a_shape), torch.ones(b_shape), [True, True])
