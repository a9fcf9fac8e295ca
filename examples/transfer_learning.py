"""A residual network learns the digits 0-4; then its body is frozen, and a new head learns 5-9 on top of it."""

import digits
import torch

from pytorch_ext import nn, optim

WIDTH = 64


class Block(nn.Module):
    """x + W2 relu(W1 x + b1) + b2"""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.output(torch.relu(self.hidden(x)))


class ResidualNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), Block(), Block(), nn.ReLU())
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images):
        return self.head(self.backbone(images))


make_model = ResidualNetwork


def half(part, first):
    """The images of the five digits from `first` on, and their labels counted from 0."""
    images, labels = digits.load_digits(part)
    chosen = (labels >= first) & (labels < first + 5)
    return images[chosen].flatten(1), labels[chosen] - first


def load_data():
    return [digits.shuffled(*half("train", first), batch_size=64) for first in (0, 5)]


def load_test():
    return half("test", 5)


def replace_head(model):
    model.requires_grad_(False)
    model.zero_grad()  # the gradients of the first lesson
    model.head = nn.Linear(WIDTH, 5, device=model.head.weight.device)
    # A linear head over fixed features has one minimum: zeros are as good a start as any, and the same everywhere.
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)


def fit(model, parameters, loader, epochs, lr):
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(parameters, lr=lr)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            yield loss.item()


def train(model, loaders, epochs=10):
    low_digits, high_digits = loaders
    yield from fit(model, model.parameters(), low_digits, epochs, lr=1e-3)
    replace_head(model)
    yield from fit(model, model.head.parameters(), high_digits, epochs, lr=1e-2)


if __name__ == "__main__":
    model = make_model()
    losses = list(train(model, load_data()))
    print(f"loss on 5-9 with the new head: {losses[len(losses) // 2]:.4f} -> {losses[-1]:.4f}")
    print(f"test accuracy on 5-9: {digits.accuracy(model, *load_test()):.2%}")
