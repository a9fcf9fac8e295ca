"""PyTorch Lightning's Trainer on a converted module, with this package's optimisers."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_same_bits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pytorch_ext
from pytorch_ext import optim

pl = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(pl.LightningModule):
    def __init__(self, adamw):
        super().__init__()
        self.adamw = adamw
        self.body = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 32), nn.ReLU())
        self.head, self.criterion = nn.Linear(32, 5), nn.CrossEntropyLoss()
        self.losses = []

    def forward(self, x):
        return F.log_softmax(self.head(self.body(x)), -1)

    def training_step(self, batch, _):
        x, labels = batch
        loss = self.criterion(self.head(self.body(x)), labels) + 0.1 * F.nll_loss(self(x), labels)
        self.log("train_loss", loss)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, _):
        x, labels = batch
        self.log("val_loss", F.nll_loss(self(x), labels))

    def configure_optimizers(self):
        optimizer = self.adamw(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def loaders():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=generator)
    labels = x[:, :5].argmax(1)
    return DataLoader(TensorDataset(x, labels), 16), DataLoader(TensorDataset(x[:16], labels[:16]), 16)


def trainer(folder, epochs):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )


def made():
    torch.manual_seed(1)
    model = Classifier(optim.AdamW)
    stock = copy.deepcopy(model)
    stock.adamw = torch.optim.AdamW
    report = pytorch_ext.convert(model)
    return model, stock, report


def test_the_layers_of_a_lightning_module_are_converted():
    model, _, report = made()
    assert {"body.0", "body.2"} <= set(report.paths("fused")) and "criterion" in report.paths("replaced")
    assert isinstance(model, Classifier)


def test_the_trainer_reaches_the_losses_of_stock(tmp_path):
    model, stock, _ = made()
    for m in (model, stock):
        trainer(tmp_path, 3).fit(m, *loaders())
    torch.testing.assert_close(torch.tensor(model.losses), torch.tensor(stock.losses), rtol=1e-4, atol=1e-5)
    assert len(model.losses) == 12 and model.losses[-1] < model.losses[0]


def test_a_run_resumed_from_its_checkpoint_ends_in_the_same_bits(tmp_path):
    whole, _, _ = made()
    trainer(tmp_path, 4).fit(whole, *loaders())
    first, _, _ = made()
    half = trainer(tmp_path, 2)
    half.fit(first, *loaders())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, _ = made()
    for p in resumed.parameters():
        p.data.zero_()
    trainer(tmp_path, 4).fit(resumed, *loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert first.losses + resumed.losses == whole.losses
    for (name, p), q in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert_same_bits(p, q, name)


def test_a_checkpoint_of_a_converted_module_is_stock_s(tmp_path):
    model, stock, _ = made()
    run = trainer(tmp_path, 1)
    run.fit(model, *loaders())
    run.save_checkpoint(tmp_path / "one.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "one.ckpt", adamw=torch.optim.AdamW, weights_only=True)
    x = torch.randn(3, 12)
    torch.testing.assert_close(loaded(x), model(x))
    assert loaded.state_dict().keys() == stock.state_dict().keys()
