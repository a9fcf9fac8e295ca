"""Handwritten digits with one hidden layer: a1 = relu(W1 x + b1), z2 = W2 a1 + b2.

Run: python examples/mnist_mlp.py [folder with MNIST's idx files]
"""

import sys

import digits

from pytorch_ext import TrainStep, nn, optim


def make_model():
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def load_data(folder=None):
    images, labels = digits.load_digits("train", folder)
    return digits.shuffled(images.flatten(1), labels, batch_size=64)


def load_test(folder=None):
    images, labels = digits.load_digits("test", folder)
    return images.flatten(1), labels


def train(model, loader, epochs=10):
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            yield loss.item()


def train_in_one_call(model, loader, epochs=10):
    """The same training, every step in one native call."""
    step = TrainStep(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=1e-3))
    for _ in range(epochs):
        for images, labels in loader:
            yield step(images, labels).item()


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    model, loader = make_model(), load_data(folder)
    losses = list(train(model, loader))
    for epoch in range(10):
        of_epoch = losses[epoch * len(loader) : (epoch + 1) * len(loader)]
        print(f"epoch {epoch + 1}: loss {sum(of_epoch) / len(of_epoch):.4f}")
    print(f"test accuracy {digits.accuracy(model, *load_test(folder)):.2%}")
