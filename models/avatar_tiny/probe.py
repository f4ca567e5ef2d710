"""The judge: a small CNN that reads a face's attributes off its picture, trained on renders alone.

python models/avatar_tiny/probe.py --minutes 3     trains, writes probe.safetensors and prints held-out accuracies

It shares no weights with the model. Attributes are learned and scored on faces without a defect (nobody can read eye
colours off a 13 x 13 mosaic); the `defect` head sees all faces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import WORK, load
from render import ATTRIBUTES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_vae import to_tensor
from training import Run, batches

from hotloop.evaluation import metrics as quality

__all__ = ["PATH", "Probe", "accuracy", "load_probe", "train"]

PATH = Path(__file__).parent / "probe.safetensors"
NAMES = list(ATTRIBUTES)
_DEFECT = NAMES.index("defect")


class Probe(nn.Module):
    """[B, 3, 64, 64] in [-1, 1] -> logits per attribute; `features` are what FID-p and KID-p compare."""

    def __init__(self, widths: tuple[int, ...] = (24, 40, 64, 80), features: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, width in enumerate(widths):
            layers += [
                nn.Conv2d(before, width, 3, stride=1 if i == 0 else 2, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
        self.body = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.mix = nn.Linear(before * (64 // 2 ** len(widths)) ** 2, features)
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, x: Tensor) -> Tensor:
        """float32 [B, 128], before the last non-linearity."""
        return self.mix(self.body(x).flatten(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shared = F.relu(self.features(x))
        return {name: head(shared) for name, head in self.heads.items()}


def train(
    data: dict[str, np.ndarray], run: Run, *, batch: int = 96, probe: Probe | None = None
) -> tuple[Probe, list[float]]:
    torch.manual_seed(0)
    probe = (probe or Probe()).train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=run.peak, weight_decay=1e-3)
    losses: list[float] = []
    for index in batches(len(data["images"]), batch, 3):
        if run.done:
            break
        x = to_tensor(data["images"][index])
        # A little shift, gain and noise: the probe is to judge decoded pictures too.
        dx, dy = np.random.RandomState(run.step).randint(-2, 3, 2)
        x = torch.roll(x, (int(dy), int(dx)), (2, 3)) * (
            0.92 + 0.16 * torch.rand(len(x), 1, 1, 1)
        ) + 0.03 * torch.randn_like(x)
        y = torch.from_numpy(data["labels"][index].astype(np.int64))
        clean = y[:, _DEFECT] == 0
        with torch.autocast("cpu", torch.bfloat16):
            out = probe(x)
        loss = sum(
            F.cross_entropy(
                out[n].float() if n == "defect" else out[n][clean].float(), y[:, i] if n == "defect" else y[clean, i]
            )
            for i, n in enumerate(NAMES)
        )
        optimizer.param_groups[0]["lr"] = run.rate()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step += 1
        losses.append(loss.item())
        run.log(loss=np.mean(losses[-50:]))
    return probe.eval(), losses


@torch.no_grad()
def predict(probe: Probe, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers int64 [N, attributes] and features float32 [N, 128] of uint8 pictures [N, 64, 64, 3]."""
    guesses, features = [], []
    for i in range(0, len(images), 128):
        x = to_tensor(images[i : i + 128])
        f = probe.features(x)
        features.append(f.numpy())
        guesses.append(torch.stack([head(F.relu(f)).argmax(1) for head in probe.heads.values()], dim=1).numpy())
    return np.concatenate(guesses), np.concatenate(features)


def accuracy(guesses: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Per attribute, 0 for one that was never asked for; truth int [N, attributes], -1 where nothing was."""
    shares = np.nan_to_num(quality.accuracy(guesses, truth))
    return {name: round(float(share), 4) for name, share in zip(NAMES, shares, strict=True)}


def clean_truth(labels: np.ndarray) -> np.ndarray:
    """Labels with the attributes of defective faces, which nobody can read, left out."""
    truth = labels.astype(np.int64)
    attributes = [i for i, n in enumerate(NAMES) if n != "defect"]
    truth[np.ix_(truth[:, _DEFECT] > 0, attributes)] = -1
    return truth


def load_probe(path: Path = PATH) -> Probe:
    probe = Probe()
    probe.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return probe.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    probe, _ = train(load("train"), Run(WORK / "unused", minutes=options.minutes, peak=2e-3, warmup=0.05))
    save_file({k: v.half() if v.is_floating_point() else v for k, v in probe.state_dict().items()}, PATH)
    held = load("heldout")
    guesses, _ = predict(load_probe(), held["images"])
    print(accuracy(guesses, clean_truth(held["labels"])))


if __name__ == "__main__":
    main()
