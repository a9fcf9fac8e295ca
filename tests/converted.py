"""Models to convert, in torch's names only, and what must not change about them."""

import torch
import torch.nn.functional as F
from torch import nn


class Written(nn.Module):
    """Every way in which a forward may call an activation, and calls that must not be joined."""

    def __init__(self, width=8):
        super().__init__()
        for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i"):
            setattr(self, name, nn.Linear(width, width))
        self.relu, self.gelu = nn.ReLU(inplace=True), nn.GELU("tanh")
        self.act = F.silu
        self.more = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        x = self.relu(self.a(x))
        x = torch.tanh(self.b(x))
        x = self.c(x).sigmoid()
        x = self.d(x)
        x = F.relu(x)
        before = self.e(x)
        after = self.relu(before.clone())
        x = self.act(self.f(after)) + before
        for layer in self.more:
            x = self.gelu(layer(x))
        x = F.gelu(self.g(x), approximate="tanh")
        kept = self.h(x)
        y = torch.relu(kept)
        x = y + kept
        x = self.i(x)
        return F.log_softmax(x, dim=-1)


class Branches(nn.Module):
    """Control flow that depends on data, on the mode and on an attribute; a counter; super() and a mangled name."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.calls, self.scale, self.__hidden = 0, 1.0, nn.ReLU()

    def forward(self, x):
        super().train(self.training)
        self.calls += 1
        if x.sum() > 0:
            x = self.__hidden(self.one(x))
        else:
            x = torch.sigmoid(self.two(x))
        if self.training:
            x = x + 1
        return x * self.scale


class Block(nn.Module):
    """A residual block as torchvision writes them, with BatchNorm between the product and its activation."""

    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.fc1(x)))
        out = self.fc2(out)
        out += identity
        return self.relu(out)


class Head(nn.Sequential):
    """A subclass of Sequential without a forward of its own."""

    def __init__(self, width, classes):
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.0), nn.Linear(width, classes))


class ImageNet(nn.Module):
    """A small residual network over images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.Sequential(Block(16), Block(16))
        self.head = Head(16, 5)

    def forward(self, x):
        x = F.relu(self.conv(x)).mean(1).flatten(1)
        return self.head(self.layers(x))


class TiedLanguageModel(nn.Module):
    """An embedding whose matrix is also the output layer's."""

    def __init__(self, words=11, width=8):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
        )
        self.output = nn.Linear(width, words, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.encoder(self.embedding(tokens)))


class Attention(nn.Module):
    """Attention out of matrix products."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        scores = (self.q(x) @ self.k(x).transpose(-2, -1)) / 8**0.5
        return torch.matmul(scores.softmax(-1), self.v(x))


MODELS = {
    "sequential": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.GELU()),
        lambda: torch.randn(4, 5),
    ),
    "written": (Written, lambda: torch.randn(4, 8)),
    "branches": (Branches, lambda: torch.randn(4, 6)),
    "image": (ImageNet, lambda: torch.randn(3, 1, 4, 4)),
    "tied": (TiedLanguageModel, lambda: torch.randint(0, 11, (2, 5))),
    "attention": (Attention, lambda: torch.randn(2, 3, 8)),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0), 2, enable_nested_tensor=False),
        lambda: torch.randn(5, 2, 8),
    ),
    "decoder": (lambda: nn.TransformerDecoderLayer(8, 2, 16, 0.0, activation="gelu"), lambda: torch.randn(5, 2, 8)),
    "multihead": (lambda: nn.MultiheadAttention(8, 2), lambda: torch.randn(5, 2, 8)),
}
ARGUMENTS = {"decoder": 2, "multihead": 3}  # how often the input is given


def made(name):
    """(the model of that name, the arguments of its call)."""
    make, data = MODELS[name]
    return make(), (data(),) * ARGUMENTS.get(name, 1)


def output_of(model, arguments):
    result = model(*arguments)
    return result[0] if isinstance(result, tuple) else result


def snapshot(model):
    """Everything about a model that its conversion must bring back."""
    return (
        repr(model),
        [(path, id(module), type(module), module.training) for path, module in model.named_modules()],
        [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)],
        [(name, id(buffer)) for name, buffer in model.named_buffers()],
        list(model.state_dict()),
        [sorted(vars(module)) for module in model.modules()],
    )


def reason(report, path):
    """(what was done to the module of that path, the detail)."""
    (row,) = [row for row in report.rows if row.path == path]
    return row.done, row.detail
