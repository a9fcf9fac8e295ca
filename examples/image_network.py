"""The same layers as attributes of a module, called one by one in `forward`; images enter as (64, 1, 28, 28).

Run: python examples/image_network.py [folder with MNIST's idx files]
"""

import sys
import time

import digits

from pytorch_ext import TrainStep, nn, optim


class ImageNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(784, 128)
        self.relu = nn.ReLU()
        self.output = nn.Linear(128, 10)

    def forward(self, images):
        z1 = self.hidden(self.flatten(images))
        a1 = self.relu(z1)
        return self.output(a1)


make_model = ImageNetwork


def load_data(folder=None):
    return digits.shuffled(*digits.load_digits("train", folder), batch_size=64)


def load_test(folder=None):
    return digits.load_digits("test", folder)


def train(model, loader, epochs=5):
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            yield loss.item()


def train_in_one_call(model, loader, epochs=5):
    """The same training, every step in one native call."""
    step = TrainStep(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=1e-3))
    for _ in range(epochs):
        for images, labels in loader:
            yield step(images, labels).item()


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    model, loader = make_model(), load_data(folder)
    images, _ = next(iter(loader))
    print(f"images {tuple(images.shape)} -> logits {tuple(model(images).shape)}")
    start = time.perf_counter()
    losses = list(train(model, loader))
    print(f"{len(losses)} steps in {time.perf_counter() - start:.2f} s, loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    print(f"test accuracy {digits.accuracy(model, *load_test(folder)):.2%}")
