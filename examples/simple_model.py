"""Three samples and a hundred steps: a model so small that calling the kernels costs more than computing."""

import torch

from pytorch_ext import TrainStep, nn, optim


def make_model():
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 5))


def load_data():
    samples = torch.rand(3, 10, generator=torch.Generator().manual_seed(0))
    return samples, torch.tensor([1, 0, 4])


def train(model, data, epochs=100):
    samples, labels = data
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = criterion(model(samples), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


def train_in_one_call(model, data, epochs=100):
    """The same training, every step in one native call."""
    samples, labels = data
    step = TrainStep(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=1e-3))
    for _ in range(epochs):
        yield step(samples, labels).item()


if __name__ == "__main__":
    for step, loss in enumerate(train(make_model(), load_data())):
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss:.4f}")
