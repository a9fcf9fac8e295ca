"""Two networks against each other: a generator learns to place points on a parabola, a discriminator to tell."""

import digits
import torch

from pytorch_ext import nn, optim


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())


make_model = GAN


def load_data():
    """Batches of 64 points (u, u^2) with u uniform in [-1, 1], and as many pairs of uniform noise."""
    generator = torch.Generator().manual_seed(0)
    u = 2 * torch.rand(2048, 1, generator=generator) - 1
    noise = 2 * torch.rand(2048, 2, generator=generator) - 1
    return digits.shuffled(torch.cat([u, u * u], dim=1), noise, batch_size=64)


def train(model, loader, epochs=40):
    criterion = nn.BCELoss()
    generator_optimizer = optim.Adam(model.generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    discriminator_optimizer = optim.Adam(model.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    for _ in range(epochs):
        for real, noise in loader:
            is_real = torch.ones(len(real), 1, device=real.device)
            is_fake = torch.zeros(len(real), 1, device=real.device)
            fake = model.generator(noise)

            discriminator_optimizer.zero_grad()
            real_loss = criterion(model.discriminator(real), is_real)
            fake_loss = criterion(model.discriminator(fake.detach()), is_fake)  # no gradient to the generator
            discriminator_loss = real_loss + fake_loss
            discriminator_loss.backward()
            discriminator_optimizer.step()

            generator_optimizer.zero_grad()
            generator_loss = criterion(model.discriminator(fake), is_real)
            generator_loss.backward()
            generator_optimizer.step()
            yield discriminator_loss.item() + generator_loss.item()


if __name__ == "__main__":
    model = make_model()
    for step, loss in enumerate(train(model, load_data())):
        if step % 128 == 127:
            print(f"step {step + 1}: both losses together {loss:.4f} (3 log 2 = 2.0794 when neither wins)")
    noise = 2 * torch.rand(1000, 2) - 1
    x, y = model.generator(noise).detach().unbind(1)
    print(f"mean distance of generated points from the parabola: {(y - x * x).abs().mean():.3f}")
