"""Models written in torch's names, beside the same models after `pytorch_ext.convert`."""

import copy

import torch
from torch import nn

import pytorch_ext


class ImageNetwork(nn.Module):
    """The layers as attributes, the activation as a call in forward."""

    def __init__(self):
        super().__init__()
        self.fc1, self.relu, self.fc2 = nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)

    def forward(self, images):
        x = self.relu(self.fc1(images.flatten(1)))
        return self.fc2(x)


def perceptron(depth, width):
    return nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())])


def encoder(width, dropout):
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS = {
    "10-5-5, batch 3": (lambda: nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 5)), (3, 10)),
    "image network, batch 64": (ImageNetwork, (64, 1, 28, 28)),
    "50 layers of 32, batch 16": (lambda: perceptron(50, 32), (16, 32)),
    "transformer encoder, 2 layers of 256, 8x64 tokens": (lambda: encoder(256, 0.0), (8, 64, 256)),
    "the same with dropout": (lambda: encoder(256, 0.1), (8, 64, 256)),
}


def training(model, x):
    def run():
        model(x).sum().backward()

    return run


def inference(model, x):
    model = copy.deepcopy(model).eval()

    def run():
        with torch.inference_mode():
            model(x)

    return run


def converted():
    for name, (make, shape) in MODELS.items():
        stock, x = make(), torch.randn(shape)
        ours = copy.deepcopy(stock)
        pytorch_ext.convert(ours)
        for kind in (training, inference):
            yield f"converted {name}, {kind.__name__}", {"ours": kind(ours, x), "stock": kind(stock, x)}, {}
