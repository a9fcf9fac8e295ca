"""One neuron: z = w x + b, a = sigmoid(z), then gradient descent towards the label 1."""

import torch

from pytorch_ext import TrainStep, nn, optim


def make_model():
    return nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())


def load_data():
    return torch.tensor([0.5, -1.2, 0.8]), torch.tensor([1.0])


def train(model, data, epochs=100):
    x, label = data
    criterion = nn.BCELoss()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = criterion(model(x), label)
        loss.backward()
        optimizer.step()
        yield loss.item()


def train_in_one_call(model, data, epochs=100):
    """The same training, every step in one native call."""
    x, label = data
    step = TrainStep(model, nn.BCELoss(), optim.SGD(model.parameters(), lr=0.1))
    for _ in range(epochs):
        yield step(x, label).item()


if __name__ == "__main__":
    model, data = make_model(), load_data()
    print(f"the neuron fires with {model(data[0]).item():.4f}")
    losses = list(train(model, data))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, output {model(data[0]).item():.4f}")
