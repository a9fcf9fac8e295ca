"""Two classes: is the sum of ten numbers positive? And the same model on scikit-learn's breast cancer data."""

import digits
import numpy as np
import torch

from pytorch_ext import TrainStep, nn, optim


def make_model():
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1), nn.Sigmoid())


def normal_samples(seed):
    # numpy's generator, because torch.randn gives different numbers on different instruction sets.
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((1000, 10), dtype=np.float32))
    return x, (x.sum(dim=1) > 0).float()


def load_data():
    return digits.shuffled(*normal_samples(seed=0), batch_size=32)


def load_test():
    return normal_samples(seed=1)


def breast_cancer(test):
    """The ten mean measurements of each cell nucleus, standardised; every fifth patient is kept for the test."""
    from sklearn.datasets import load_breast_cancer

    measurements, labels = load_breast_cancer(return_X_y=True)
    x = measurements[:, :10]
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    chosen = (np.arange(len(x)) % 5 == 0) == test
    return torch.from_numpy(x[chosen]), torch.from_numpy(labels[chosen].astype(np.float32))


def train(model, loader, epochs=10):
    criterion = nn.BCELoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, labels in loader:
            optimizer.zero_grad()
            probabilities = model(x).squeeze(1)  # (N, 1) -> (N,), the shape of the labels
            loss = criterion(probabilities, labels)
            loss.backward()
            optimizer.step()
            yield loss.item()


def train_in_one_call(model, loader, epochs=10):
    """The same training, every step in one native call."""
    step = TrainStep(model, nn.BCELoss(), optim.Adam(model.parameters(), lr=1e-2))
    for _ in range(epochs):
        for x, labels in loader:
            yield step(x, labels.unsqueeze(1)).item()


@torch.no_grad()
def accuracy(model, x, labels):
    return ((model(x).squeeze(1) > 0.5) == (labels > 0.5)).float().mean().item()


if __name__ == "__main__":
    sums = make_model()
    *_, loss = train(sums, load_data())
    print(f"sign of the sum: loss {loss:.4f}, test accuracy {accuracy(sums, *load_test()):.2%}")
    cancer = make_model()
    *_, loss = train(cancer, digits.shuffled(*breast_cancer(test=False), batch_size=32))
    print(f"breast cancer:   loss {loss:.4f}, test accuracy {accuracy(cancer, *breast_cancer(test=True)):.2%}")
