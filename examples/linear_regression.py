"""A line through five points: y = 2 x, found by gradient descent on z = w x + b."""

import torch

from pytorch_ext import TrainStep, nn, optim


def make_model():
    return nn.Linear(1, 1)


def load_data():
    # One column, not shape (5,): Linear(1, 1) takes rows of one feature.
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    return x, 2 * x


def train(model, data, epochs=1000):
    x, y = data
    criterion = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        yield loss.item()


def train_in_one_call(model, data, epochs=1000):
    """The same training, every step in one native call."""
    x, y = data
    step = TrainStep(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.01))
    for _ in range(epochs):
        yield step(x, y).item()


if __name__ == "__main__":
    model = make_model()
    for step, loss in enumerate(train(model, load_data())):
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss:.6f}")
    print(f"y = {model.weight.item():.4f} x + {model.bias.item():.4f}")
