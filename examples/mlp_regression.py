"""Two inputs copied through five hidden units, with the activation called as a function inside `forward`."""

import torch

from pytorch_ext import TrainStep, nn, optim


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(2, 5)
        self.output = nn.Linear(5, 2)

    def forward(self, x):
        return self.output(torch.relu(self.hidden(x)))


make_model = Network


def load_data():
    x = torch.tensor([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0], [5.0, 6.0]])
    return x, x


def train(model, data, epochs=1000):
    x, y = data
    criterion = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()  # without it, the gradients of all earlier steps would be added up
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
    model, data = make_model(), load_data()
    for step, loss in enumerate(train(model, data)):
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss:.6f}")
    print(model(data[0]).detach())
