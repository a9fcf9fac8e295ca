"""Handwritten digits for the examples: scikit-learn's 1,797, or a folder of MNIST's own idx files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

SIDE = 28  # pixels
TRAINING_DIGITS = 1437  # the last 360 of scikit-learn's digits come from other writers: they are the test set
UNSIGNED_BYTE = 8  # idx type code
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_digits(part, folder=None):
    """Images (N, 1, 28, 28) in [0, 1] and labels (N,) of `part` "train" or "test"; MNIST's when `folder` is given."""
    if folder is not None:
        return load_mnist(part, Path(folder))
    pixels, labels = small_digits(part)
    return torch.from_numpy(enlarge(pixels)[:, None]), torch.from_numpy(labels)


def small_digits(part):
    """scikit-learn's own images, whole numbers 0..16 of shape (N, 8, 8), and labels (N,)."""
    from sklearn.datasets import load_digits as load_flat_digits

    pixels, labels = load_flat_digits(return_X_y=True)
    chosen = slice(None, TRAINING_DIGITS) if part == "train" else slice(TRAINING_DIGITS, None)
    return pixels[chosen].astype(np.int64).reshape(-1, 8, 8), labels[chosen].astype(np.int64)


def enlarge(images):
    """8x8 images of integers 0..16 as 28x28 float32 in [0, 1]: bilinear, in integers until one last division.

    Pixel i of 28 lies at (4 i - 5) / 14 of the 8: every weight is a multiple of 1/14, so no rounding depends on the
    machine.
    """
    weights = np.zeros((SIDE, 8), dtype=np.int64)
    for i in range(SIDE):
        position = min(max(4 * i - 5, 0), 7 * 14)
        left, remainder = divmod(position, 14)
        weights[i, left] += 14 - remainder
        weights[i, min(left + 1, 7)] += remainder
    large = np.einsum("ip,npq,jq->nij", weights, images, weights)
    return large.astype(np.float32) / np.float32(16 * 14 * 14)


def load_mnist(part, folder):
    """One part of MNIST from its idx files, plain or gzipped, in `folder` or where torchvision puts them: MNIST/raw."""
    images_file, labels_file = (find_file(folder, name) for name in MNIST_FILES[part])
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"{images_file}: expected images of shape (N, 28, 28), got {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{labels_file}: expected {len(images)} labels, one per image, got shape {labels.shape}")
    if labels.size == 0 or labels.max() > 9:
        raise ValueError(f"{labels_file}: expected labels 0 to 9, got {labels.max() if labels.size else 'no labels'}")
    scaled = images[:, None].astype(np.float32) / np.float32(255)
    return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))


def find_file(folder, name):
    """The file `name`, also spelled with a dot before `idx` or with .gz after it."""
    for directory in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for spelling in (name, name.replace("-idx", ".idx")):
            for suffix in ("", ".gz"):
                candidate = directory / (spelling + suffix)
                if candidate.is_file():
                    return candidate
    raise FileNotFoundError(f"{folder}: expected MNIST's file {name} (or {name}.gz), found none")


def read_idx(path):
    """An idx file of unsigned bytes as an array: two zero bytes, a type code, the dimensions (big-endian), the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: expected a gzip file: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise ValueError(f"{path}: expected an idx file of unsigned bytes (0x000008..), got 0x{content[:4].hex()}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path}: expected {dimensions} dimensions, the file ends before them")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    expected = int(np.prod(shape, dtype=np.int64))
    if values.size != expected:
        raise ValueError(f"{path}: expected {expected} bytes for shape {shape}, got {values.size}")
    return values.reshape(shape)


def shuffled(x, y, batch_size):
    """A DataLoader over pairs of `x` and `y`, in an order that is the same on every machine."""
    order = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True, generator=order)


@torch.no_grad()
def accuracy(model, inputs, labels):
    """The share of `inputs` whose largest output is at its label; the model is left in training mode."""
    model.eval()
    correct = (model(inputs).argmax(dim=1) == labels).float().mean().item()
    model.train()
    return correct
