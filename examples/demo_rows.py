"""The rows of the demo: how far each may lie from stock PyTorch, and which figures it must show."""

from collections.abc import Callable
from dataclasses import dataclass, field

import digits
import numpy as np
import torch

# Largest relative difference from stock PyTorch. Both sides round every sum in another order, each rounding at 6e-8.
CONVEX = 2e-5  # one minimum draws both curves together; measured with Linear in float64: 4e-6
DEEP = 1e-4  # ReLUs and Adam's division by small gradients let roundings grow; measured likewise: 5e-6
FIGURES = 2e-6  # one forward and backward: some tens of roundings
EXACT = 0.0  # whole numbers and halves: nothing is rounded
COMPARED_STEPS = 1000  # roundings grow without end: measured, 3e-5 at step 1000 of simple_model, 2e-3 at step 2000


def own_data(script, *folder):
    return script.load_data(*folder)


@dataclass
class Row:
    name: str  # the id, and the script
    bound: float
    title: str = ""  # in the table; the name when empty
    expected: dict = field(default_factory=dict)  # figure -> its exact value
    check: Callable | None = None  # Result -> messages, one for every wrong figure
    accuracy: Callable | None = None  # (script, model, device, *folder) -> share of right answers on the test data
    least_accuracy: float = 0.0  # after the script's own number of epochs
    load_data: Callable = own_data
    prepare_stock: Callable | None = None  # changes stock's model before it is trained beside ours
    compared_steps: int = COMPARED_STEPS  # the bound holds for these first steps
    takes_folder: bool = False  # trains on the user's MNIST when it is given

    def __post_init__(self):
        self.title = self.title or self.name


def digits_accuracy(script, model, device, *folder):
    return digits.accuracy(model, *(tensor.to(device) for tensor in script.load_test(*folder)))


def sign_accuracy(script, model, device):
    return script.accuracy(model, *(tensor.to(device) for tensor in script.load_test()))


def cancer_accuracy(script, model, device):
    return script.accuracy(model, *(tensor.to(device) for tensor in script.breast_cancer(test=True)))


def breast_cancer(script):
    return digits.shuffled(*script.breast_cancer(test=False), batch_size=32)


class SameMask(torch.nn.Module):
    """Stock dropout that takes the mask which our dropout draws from the same state of torch's generator."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        from pytorch_ext.functional import dropout

        return x * dropout(torch.ones_like(x), self.p, self.training)


def share_the_mask(model):
    model[0] = SameMask(model[0].p)


def unless(true, figure, expected, got):
    """The message for a wrong `figure`, unless `true`."""
    return [] if true else [f"{figure}: expected {expected}, got {got}"]


def unless_close(figure, got, expected, tolerance):
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    distance = np.max(np.abs(got - expected))
    return unless(distance <= tolerance, figure, f"{expected.tolist()} within {tolerance:g}", got.tolist())


def falling_loss(result):
    first, last = result.losses[0][0], result.losses[0][-1]
    return unless(last < first or not result.complete, "final loss", f"less than the first, {first:.6g}", f"{last:.6g}")


def check_neuron(result):
    """The first output is 1 / (1 + exp(-(w x + b)))."""
    model = result.script.make_model()
    model.load_state_dict(result.initial)
    x, _ = result.script.load_data()
    weight, bias = (tensor.double() for tensor in result.initial.values())
    expected = 1 / (1 + torch.exp(-(weight @ x.double() + bias)))
    got = model(x).detach().double()
    return unless_close("first output", got, expected, 1e-6) + falling_loss(result)


def check_image_network(result):
    images, _ = result.script.load_test()
    device = result.models[0].output.weight.device
    shape = tuple(result.models[0](images[:64].to(device)).shape)
    return unless(shape == (64, 10), "shape of the logits", (64, 10), shape) + falling_loss(result)


def check_linear_regression(result):
    if not result.complete:
        return []
    model = result.models[0]
    wrong = unless_close("weight", model.weight.item(), 2, 0.02)
    return wrong + unless_close("bias", model.bias.item(), 0, 0.05)


def check_sklearn_regression(result):
    """The line of gradient descent lies near the line of least squares, which float64 algebra gives."""
    if not result.complete:
        return []
    x, y, _ = result.script.points()
    columns = np.column_stack([x.double().numpy(), np.ones(len(x))])
    (slope, bias), *_ = np.linalg.lstsq(columns, y.double().numpy()[:, 0], rcond=None)
    model = result.models[0]
    return unless_close("slope", model.weight.item(), slope, 0.5) + unless_close("bias", model.bias.item(), bias, 0.5)


def check_dropout_head(result):
    """Training silences about half of the inputs and doubles the others; evaluation changes nothing."""
    model = result.models[0]
    ones = torch.ones(64, 512, device=model[1].weight.device)
    dropped = model.train()[0](ones)
    share = (dropped == 0).double().mean().item()
    wrong = unless_close("share of silent inputs", share, 0.5, 0.02)
    kept = dropped[dropped != 0].unique().tolist()
    wrong += unless(kept == [2.0], "values of the other inputs", [2.0], kept)
    again = model[0](ones)
    wrong += unless(not torch.equal(dropped, again), "two training passes", "different masks", "one mask twice")
    evaluated = model.eval()[0](ones)
    return wrong + unless(torch.equal(evaluated, ones), "evaluation", "inputs as they were", "changed inputs")


def check_softmax(result):
    sums = result.figures["probabilities"].cpu().double().sum(dim=1)
    wrong = unless_close("row sums", sums, torch.ones_like(sums), 1e-6)
    gradient = result.figures["logits.grad"].cpu().double().sum(dim=1)
    return wrong + unless_close("row sums of logits.grad", gradient, torch.zeros_like(gradient), 1e-6)


def check_attention(result):
    sums = result.figures["weights"].cpu().double().sum(dim=-1)
    return unless_close("row sums of the attention weights", sums, torch.ones_like(sums), 1e-6)


def check_gan(result):
    if not result.complete:
        return []
    noise = 2 * torch.rand(1000, 2, generator=torch.Generator().manual_seed(1)) - 1
    model = result.models[0]
    x, y = model.generator(noise.to(next(model.parameters()).device)).detach().unbind(1)
    distance = (y - x * x).abs().mean().item()
    return unless(distance < 0.1, "mean distance of generated points from the parabola", "less than 0.1", distance)


def check_transfer_learning(result):
    got = [name for name, parameter in result.models[0].named_parameters() if parameter.grad is not None]
    return unless(got == ["head.weight", "head.bias"], "parameters with gradients", "those of the head", got)


def check_matrix_gradient(result):
    x, w, b, y = (tensor.double().cpu() for tensor in result.data)
    delta = 2 * (x @ w + b - y) / y.numel()
    wrong = unless_close("w.grad", result.figures["w.grad"].cpu(), x.T @ delta, 1e-5)
    return wrong + unless_close("b.grad", result.figures["b.grad"].cpu(), delta.sum(dim=0), 1e-5)


def check_kmeans(result):
    points, fit = result.script.cluster()
    got = result.figures["labels"].cpu().numpy()
    differing = int((got != fit.labels_).sum())
    wrong = unless(differing == 0, "points in another cluster than scikit-learn's", 0, differing)
    return wrong + unless_close(
        "squared distances", result.figures["squared distances"].cpu(), fit.transform(points) ** 2, 1e-3
    )


ROWS = [
    Row("neuron", CONVEX, check=check_neuron),
    Row("mnist_mlp", DEEP, accuracy=digits_accuracy, least_accuracy=0.85, takes_folder=True),
    Row(
        "image_network",
        DEEP,
        check=check_image_network,
        accuracy=digits_accuracy,
        least_accuracy=0.8,
        takes_folder=True,
    ),
    Row("simple_model", DEEP, check=falling_loss),
    Row("binary_classifier", DEEP, accuracy=sign_accuracy, least_accuracy=0.95),
    Row(
        "binary_classifier",
        DEEP,
        title="  on breast cancer",
        load_data=breast_cancer,
        accuracy=cancer_accuracy,
        least_accuracy=0.85,
    ),
    Row("linear_regression", CONVEX, check=check_linear_regression),
    Row("mlp_regression", DEEP, check=falling_loss),
    Row("sklearn_regression", CONVEX, check=check_sklearn_regression),
    Row(
        "dropout_head",
        CONVEX,
        check=check_dropout_head,
        accuracy=digits_accuracy,
        least_accuracy=0.75,
        prepare_stock=share_the_mask,
    ),
    Row("softmax_probabilities", FIGURES, check=check_softmax),
    Row("attention", FIGURES, check=check_attention),
    # Two networks that answer each other amplify every rounding: only the first steps can agree.
    Row("gan", CONVEX, check=check_gan, compared_steps=20),
    Row("transfer_learning", DEEP, check=check_transfer_learning, accuracy=digits_accuracy, least_accuracy=0.6),
    Row("scalar_gradient", EXACT, expected={"loss": 64, "w.grad": 80, "b.grad": 16}),
    Row("matrix_gradient", FIGURES, check=check_matrix_gradient),
    Row("chain_rule", EXACT, expected={"loss": 0.25, "w.grad": -2, "b.grad": -1}),
    Row(
        "autograd_basics",
        EXACT,
        expected={
            "cubic": 14,
            "quadratic": 7,
            "a.grad": [3, 4],
            "b.grad": [1, 2],
            "two passes": 4,
            "recorded": [0, 0, 1],
        },
    ),
    Row("matrix_product", EXACT, expected={"product": [[66, 72, 78], [156, 171, 186]]}),
    Row("kmeans", FIGURES, check=check_kmeans),
]
