"""A noisy line from scikit-learn, fitted in shuffled batches; the loss curve and the line are drawn to a file."""

from pathlib import Path

import digits
import matplotlib
import torch
from sklearn.datasets import make_regression

from pytorch_ext import TrainStep, nn, optim

BIAS = 1.5


def make_model():
    return nn.Linear(1, 1)


def points():
    """100 points x (100, 1), y (100, 1), and the slope of the line they scatter around."""
    x, y, slope = make_regression(n_samples=100, n_features=1, noise=10, coef=True, bias=BIAS, random_state=0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32).unsqueeze(1), float(slope)


def load_data():
    x, y, _ = points()
    return digits.shuffled(x, y, batch_size=16)


def train(model, loader, epochs=100):
    criterion = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            yield loss.item()


def train_in_one_call(model, loader, epochs=100):
    """The same training, every step in one native call."""
    step = TrainStep(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=1e-2))
    for _ in range(epochs):
        for x, y in loader:
            yield step(x, y).item()


def plot(model, losses):
    """A matplotlib figure: the loss of every step, and the fitted line beside the true one."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y, slope = points()
    ends = torch.stack([x.min(), x.max()]).unsqueeze(1)
    figure, (curve, line) = plt.subplots(1, 2, figsize=(10, 4))
    curve.plot(losses)
    curve.set(xlabel="step", ylabel="mean squared error", yscale="log")
    line.scatter(x, y, s=10, color="grey", label="points")
    line.plot(ends, slope * ends + BIAS, label=f"true: {slope:.2f} x + {BIAS:.2f}")
    fitted = f"fitted: {model.weight.item():.2f} x + {model.bias.item():.2f}"
    line.plot(ends, model(ends).detach(), "--", label=fitted)
    line.legend()
    return figure


if __name__ == "__main__":
    model = make_model()
    losses = list(train(model, load_data()))
    drawing = Path("demo-output") / "sklearn_regression.png"
    drawing.parent.mkdir(exist_ok=True)
    plot(model, losses).savefig(drawing, bbox_inches="tight")
    print(f"y = {model.weight.item():.2f} x + {model.bias.item():.2f}, drawn in {drawing}")
