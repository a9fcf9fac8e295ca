"""A classifier's head with dropout: half of its 512 inputs are silent in every training step, none afterwards."""

import digits
import numpy as np
import torch

from pytorch_ext import TrainStep, nn, optim


def make_model():
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 10))


def features(part):
    """512 fixed features of each digit, a1 = relu(W1 x) with W1 of +1 and -1: whole numbers, exact on any machine."""
    pixels, labels = digits.small_digits(part)
    signs = 2 * np.random.default_rng(0).integers(0, 2, (64, 512)) - 1
    a1 = np.maximum(pixels.reshape(-1, 64) @ signs, 0)
    return torch.from_numpy(a1).float() / 64, torch.from_numpy(labels)


def load_data():
    return digits.shuffled(*features("train"), batch_size=64)


def load_test():
    return features("test")


def train(model, loader, epochs=10):
    model.train()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for x, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), labels)
            loss.backward()
            optimizer.step()
            yield loss.item()


def train_in_one_call(model, loader, epochs=10):
    """The same training, every step in one native call."""
    model.train()
    step = TrainStep(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.01))
    for _ in range(epochs):
        for x, labels in loader:
            yield step(x, labels).item()


if __name__ == "__main__":
    model = make_model()
    *_, loss = train(model, load_data())
    print(f"loss {loss:.4f}, test accuracy {digits.accuracy(model, *load_test()):.2%}")
    x, _ = load_test()
    print("two training passes agree:", torch.equal(model.train()(x), model(x)))
    print("two evaluation passes agree:", torch.equal(model.eval()(x), model(x)))
