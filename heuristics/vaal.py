"""VAAL, variational adversarial active learning: images whose VAE latents a discriminator is surest are unlabelled.

Sinha et al. 2019, https://arxiv.org/abs/1904.00370; AL-MGS's learning rate of 1e-6 hardly learns. The model takes no
part. The published code sums the KL divergence, here it is the mean, so that `beta` means the same for any batch; and
it normalises labelled and unlabelled batches apart, which hides what sets them apart: here both are in one batch.
Crops are shrunk to a square of fixed size, and an image is scored by windows as large as the crops.
"""

from itertools import pairwise

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition.prediction import floats
from experiments.components.settings import Range

ingredient = Ingredient("vaal")


@ingredient.config
def settings():
    size = 64  # side of what the VAE sees of a crop, a multiple of 16
    width = 32  # channels of the VAE's first level, 8 times that in its last; the published 128 is 16 times the work
    latent = 32  # dimensions of the latent space
    lr = 0.0005  # of Adam, for the VAE and for the discriminator
    beta = 1.0  # weight of the KL divergence
    adversary = 1.0  # weight of deceiving the discriminator
    vae_steps = 2  # steps of the VAE for each of the discriminator


ALLOWED = {
    "size": range(16, 2**12, 16),
    "width": Range(least=1),
    "latent": Range(least=1),
    "lr": Range(least=0),
    "beta": Range(least=0),
    "adversary": Range(least=0),
    "vae_steps": Range(least=1),
}


@ingredient.capture
def prepare(channels, widths, rng, size, width, latent, lr):
    """A VAE and a discriminator, each with its Adam; `window` is the crops' height and width, once it has seen some."""
    nn, levels, end = torch.nn, [width << level for level in range(4)], size // 16
    down, up = [channels, *levels], [*levels[::-1], channels]
    flat = levels[-1] * end**2
    learner = nn.ModuleDict(
        {
            "encoder": nn.Sequential(*(block(nn.Conv2d, a, b) for a, b in pairwise(down)), nn.Flatten()),
            "mean": nn.Linear(flat, latent),
            "log_variance": nn.Linear(flat, latent),
            "decoder": nn.Sequential(
                nn.Linear(latent, flat),
                nn.Unflatten(1, (levels[-1], end, end)),
                *(block(nn.ConvTranspose2d, a, b) for a, b in pairwise(up[:-1])),
                nn.ConvTranspose2d(*up[-2:], 4, stride=2, padding=1),
            ),
            "discriminator": nn.Sequential(
                nn.Linear(latent, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)
            ),
        }
    )
    learner.register_buffer("window", torch.tensor([size, size]))
    learner.size, learner.rng = size, rng
    adversary = [*learner["discriminator"].parameters()]
    vae = [p for name, p in learner.named_parameters() if not name.startswith("discriminator.")]
    learner.vae_optimizer, learner.optimizer = torch.optim.Adam(vae, lr), torch.optim.Adam(adversary, lr)
    return learner


@ingredient.capture
def step(learner, labelled, unlabelled, vae_steps, beta, adversary):
    learner.window.copy_(torch.tensor(labelled.shape[2:]))
    x = shrunk(torch.cat([labelled, unlabelled]), learner.size)
    for _ in range(vae_steps):
        update(learner, learner.vae_optimizer, vae_loss(learner, x, beta, adversary))
    update(learner, learner.optimizer, discriminator_loss(learner, x, len(labelled)))


@ingredient.capture
def score(pool, rng):
    """(N,) log odds of being unlabelled, the mean over each image's windows."""
    learner, scores, pending = pool.learner, np.empty(len(pool)), []
    height, width = learner.window.tolist()
    with torch.inference_mode():
        for positions, images in pool.images():
            seen = shrunk(windows(floats(images), height, width), learner.size)
            odds = learner["discriminator"](latent_means(learner, seen))
            pending.append((positions, -odds.view(len(images), -1).mean(1)))
    for positions, values in pending:
        scores[positions] = values.cpu().numpy()
    return scores


def vae_loss(learner, x, beta, adversary):
    """Reconstruction, KL divergence, and how far all images are from being called labelled."""
    hidden = learner["encoder"](x)
    mean, log_variance = learner["mean"](hidden), learner["log_variance"](hidden)
    noise = torch.from_numpy(learner.rng.standard_normal(mean.shape, dtype=np.float32)).to(x.device)
    decoded = learner["decoder"](mean + noise * (log_variance / 2).exp())
    deceived = judged(learner["discriminator"](mean), 1.0)
    return torch.nn.functional.mse_loss(decoded, x) + beta * divergence(mean, log_variance) + adversary * deceived


def discriminator_loss(learner, x, labelled):
    """The first `labelled` images are to be called 1, those of the pool after them 0."""
    with torch.no_grad():
        means = latent_means(learner, x)
    logits = learner["discriminator"](means)
    return judged(logits[:labelled], 1.0) + judged(logits[labelled:], 0.0)


def latent_means(learner, x):
    return learner["mean"](learner["encoder"](x))


def divergence(mean, log_variance):
    """KL of the latent normals to the standard one, the mean over images and dimensions."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2


def judged(logits, target):
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def update(learner, optimizer, loss):
    learner.zero_grad()
    loss.backward()
    optimizer.step()


def shrunk(x, size):
    return torch.nn.functional.adaptive_avg_pool2d(x, size)


def windows(x, height, width):
    """(B * T, channels, height, width): the T evenly spaced windows that cover each image, 0 beyond a smaller one."""
    x = torch.nn.functional.pad(x, (0, max(0, width - x.shape[3]), 0, max(0, height - x.shape[2])))
    corners = [(i, j) for i in starts(x.shape[2], height) for j in starts(x.shape[3], width)]
    return torch.stack([x[:, :, i : i + height, j : j + width] for i, j in corners], 1).flatten(0, 1)


def starts(length, window):
    """Where the fewest windows that cover a length begin."""
    count = -(-length // window)
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def block(convolution, before, after):
    """Half or double the size; batch norm and ReLU as in the published code."""
    return torch.nn.Sequential(
        convolution(before, after, 4, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(after),
        torch.nn.ReLU(),
    )
