"""The figures of the demo: each function draws one file from the results it needs."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch


def draw(results, folder):
    """Draw every figure whose row is among `results` into `folder`; returns the files written."""
    by_title = {result.row.title: result for result in results}
    written = []

    def save(figure, name):
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=100, bbox_inches="tight")
        plt.close(figure)

    trained = [result for result in results if len(result.losses[0])]
    if trained:
        save(loss_curves(trained), "loss_curves")
    save(step_times(results), "step_times")
    for title, function in FIGURES.items():
        if title in by_title:
            save(function(by_title[title]), function.__name__)
    return written


def loss_curves(results):
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, result in zip(axes.flat, results, strict=False):
        ours, stock = result.losses
        axis.plot(stock, color="silver", linewidth=3, label="stock PyTorch")
        axis.plot(ours, color="tab:blue", linewidth=1, label="pytorch_ext")
        axis.set_title(result.row.title.strip())
        axis.set_yscale("log")
    axes.flat[0].legend()
    figure.supxlabel("step")
    figure.supylabel("loss")
    return figure


def step_times(results):
    """Bars: how many times faster than stock PyTorch a step is."""
    titles = [result.row.title.strip() for result in results]
    ratios = [result.step_times[1] / result.step_times[0] for result in results]
    figure, axis = plt.subplots(figsize=(7, 0.3 * len(results) + 1), layout="constrained")
    axis.barh(titles, ratios, color=["tab:blue" if ratio >= 1 else "tab:red" for ratio in ratios])
    axis.axvline(1, color="black", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_xlabel("time of a step with stock PyTorch / with pytorch_ext")
    return figure


def fitted_line(result):
    return result.script.plot(result.models[0].cpu(), result.losses[0])


def confusion_of_digits(result):
    """How often a digit (row) was read as each digit (column)."""
    images, labels = result.script.load_test(*result.folder)
    predicted = result.models[0].cpu().eval()(images).argmax(dim=1)
    counts = torch.bincount(10 * labels + predicted, minlength=100).reshape(10, 10)
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.imshow(counts.numpy(), cmap="Blues")
    for row, column in np.ndindex(10, 10):
        if counts[row, column]:
            shade = "white" if counts[row, column] > counts.max() / 2 else "black"
            axis.text(column, row, int(counts[row, column]), ha="center", va="center", color=shade, fontsize=8)
    axis.set(xlabel="read as", ylabel="digit", xticks=range(10), yticks=range(10))
    axis.set_title(f"accuracy {result.accuracy:.1%}")
    return figure


def decision(result):
    """The classifier's probability over the sum that decides the label."""
    x, labels = result.script.load_test()
    probabilities = result.models[0].cpu()(x).detach().squeeze(1)
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.scatter(x.sum(dim=1), probabilities, c=labels, cmap="coolwarm", s=6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axhline(0.5, color="black", linewidth=0.8)
    axis.set(xlabel="sum of the ten inputs", ylabel="probability of a positive sum")
    return figure


def generated_points(result):
    noise = 2 * torch.rand(500, 2, generator=torch.Generator().manual_seed(1)) - 1
    points = result.models[0].cpu().generator(noise).detach()
    u = torch.linspace(-1, 1, 100)
    figure, axis = plt.subplots(figsize=(5, 4))
    axis.plot(u, u * u, color="silver", linewidth=3, label="real")
    axis.scatter(*points.unbind(1), s=6, label="generated")
    axis.legend()
    return figure


def attention_weights(result):
    figure, axis = plt.subplots(figsize=(5, 4))
    image = axis.imshow(result.figures["weights"][0].cpu().numpy(), cmap="viridis")
    axis.set(xlabel="key", ylabel="query")
    figure.colorbar(image)
    return figure


def clusters(result):
    points, fit = result.script.cluster()
    figure, axis = plt.subplots(figsize=(5, 4))
    axis.scatter(*points.T, c=result.figures["labels"].cpu(), s=10, cmap="viridis")
    axis.scatter(*fit.cluster_centers_.T, marker="x", color="red", label="centres")
    axis.legend()
    return figure


# The row's title, and what is drawn of it; the file has the function's name.
FIGURES = {
    "sklearn_regression": fitted_line,
    "mnist_mlp": confusion_of_digits,
    "binary_classifier": decision,
    "gan": generated_points,
    "attention": attention_weights,
    "kmeans": clusters,
}
