"""Trains the textbook generators on drawn faces: one stage each, at most ten CPU minutes.

`python models/avatar/textbook.py gan FOLDER` writes what has been trained as a folder that `hotloop export` takes.

The class is the hair colour (conditional forms), which `probe_train` does not read at these sizes: a small reader is
trained beside, on real faces of the same size, and says how many colours appear and whether the asked one does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from adversary import LOSSES, gradient_penalty, r1
from data import Shards
from pixels import to_images, to_tensor
from render import ATTRIBUTES
from torch import Tensor, nn
from training import Options, Run, Stage, load_weights

from hotloop.nets.generators import CVAE, DCGAN, Critic, MLPGenerator, StyleGenerator

__all__ = ["RECIPES", "Recipe", "main", "stage", "write_folder"]

HAIR = len(ATTRIBUTES["hair"])


class Recipe:
    """A generator, its critic, its loss: name -> how to make them."""

    def __init__(
        self, make: Callable[[], nn.Module], *, size: int = 64, loss: str = "hinge", classes: int = HAIR,
        widths: tuple[int, ...] = (32, 64, 128),
    ) -> None:  # fmt: skip
        self.make, self.size, self.loss, self.classes = make, size, loss, classes
        self.channels, self.widths = (1 if size == 28 else 3), widths

    def critic(self) -> Critic:
        sizes = {"size": self.size, "channels": self.channels, "widths": self.widths}
        return Critic(sizes | {"classes": self.classes})


RECIPES: dict[str, Recipe] = {
    "gan": Recipe(lambda: MLPGenerator({}), size=28, loss="non-saturating", classes=0),
    "gan-class": Recipe(lambda: MLPGenerator({"classes": HAIR}), size=28, loss="least squares"),
    "dcgan": Recipe(lambda: DCGAN({"size": 64, "channels": 3, "classes": HAIR}), widths=(32, 64, 96, 128)),
    "wgan": Recipe(lambda: DCGAN({"size": 28}), size=28, loss="wgan-gp", classes=0),
    "style": Recipe(lambda: StyleGenerator({"classes": HAIR}), widths=(32, 64, 96, 128)),
    "cvae": Recipe(lambda: CVAE({"classes": HAIR})),
}


class _Rows:
    """Drawn faces, small: float32 [N, C, S, S] in [-1, 1] and hair classes [N]."""

    def __init__(self, options: Options, size: int, *, held: bool = False) -> None:
        shards = Shards(options.build / "data", "even", held=held)
        pictures, hair = [], []
        for part in shards.parts:
            clear = np.flatnonzero(part["labels"][:, -1] == 0)
            x = to_tensor(part["images"][clear])
            x = F.interpolate(x, size=(size, size), mode="area")
            pictures.append((x.mean(1, keepdim=True) if size == 28 else x).half())
            hair.append(torch.from_numpy(part["labels"][clear, 0].astype(np.int64)))
        self.x, self.hair = torch.cat(pictures), torch.cat(hair)

    def batch(self, size: int, device: str) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.x), (size,))
        return self.x[index].float().to(device), self.hair[index].to(device)


def _adversarial(recipe: Recipe, rows: _Rows, run: Run, generator: Any, critic: Critic, options: Options) -> None:
    """Alternates critic and generator until the run is over."""
    rate = 2e-4 if recipe.loss != "wgan-gp" else 1e-4
    pair = [torch.optim.Adam(m.parameters(), lr=rate, betas=(0.5, 0.99)) for m in (generator, critic)]
    batch = 8 if options.small else 48
    while run.going():
        x, hair = rows.batch(batch, options.device)
        label = hair if recipe.classes else None
        fake = generator(torch.randn(len(x), generator.z, device=x.device), label)
        both = LOSSES[recipe.loss](critic(x, label), critic(fake.detach(), label))[0]
        if recipe.loss == "wgan-gp":
            both = both + 10 * gradient_penalty(lambda v, y=label: critic(v, y), x, fake.detach())
        elif run.step % 8 == 0:
            both = both + 8 * r1(lambda v, y=label: critic(v, y), x)
        pair[1].zero_grad()
        both.backward()
        pair[1].step()
        values = {"critic": both.detach()}
        if recipe.loss != "wgan-gp" or run.step % 3 == 0:
            own = LOSSES[recipe.loss](critic(x, label), critic(fake, label))[1]
            pair[0].zero_grad()
            own.backward()
            pair[0].step()
            values["generator"] = own.detach()
        run.count(**values)


def _variational(rows: _Rows, run: Run, net: CVAE, options: Options) -> None:
    batch = 8 if options.small else 32
    while run.going():
        x, hair = rows.batch(batch, options.device)
        y, moments = net(x, hair)
        mean, logvar = moments.chunk(2, dim=1)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        run.descend(((x - y) ** 2).sum((1, 2, 3)).mean() / 100 + (x - y).abs().mean() + 0.02 * kl, nats=kl)


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment of the recipe of the stage's name; True when it is complete."""
    torch.manual_seed(14)
    recipe = RECIPES[stage.name]
    generator: Any = recipe.make().to(options.device).train()
    rows = _Rows(options, recipe.size)
    if isinstance(generator, CVAE):
        run = Run(stage, {"generator": generator}, options, needs=needs)
        _variational(rows, run, generator, options)
    else:
        critic = recipe.critic().to(options.device).train()
        run = Run(stage, {"generator": generator, "critic": critic}, options, needs=needs)
        _adversarial(recipe, rows, run, generator, critic, options)
    with run.average.applied():
        figures = judged(recipe, generator.eval(), rows, options) if run.over else {}
    generator.train()
    return run.close(**figures)


def _reader(rows: _Rows, options: Options) -> nn.Module:
    """Hair colours off real faces of this size, learned in seconds."""
    net = Critic({"size": rows.x.shape[-1], "channels": rows.x.shape[1]}).to(options.device)
    net.out = nn.Linear(net.out.in_features, HAIR).to(options.device)
    read = nn.Sequential(net.body, net.out)
    adam = torch.optim.Adam(read.parameters(), lr=1e-3)
    for _ in range(5 if options.small else 400):
        x, hair = rows.batch(64, options.device)
        loss = F.cross_entropy(read(x + 0.05 * torch.randn_like(x)), hair)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return read.eval()


def judged(recipe: Recipe, generator: Any, rows: _Rows, options: Options, count: int = 450) -> dict[str, Any]:
    """Shares of hair colours in what is drawn, and how often the asked one is; a sheet in build/."""
    from PIL import Image

    count = 18 if options.small else count
    read = _reader(rows, options)
    asked = torch.arange(count, device=options.device) % HAIR
    z = torch.randn(count, generator.z, device=options.device)
    with torch.no_grad():
        if isinstance(generator, CVAE):
            drawn = generator.draw(z, asked)
        else:
            drawn = generator(z, asked if recipe.classes else None)
        guess = read(drawn).argmax(1)
        real = float(
            (read(rows.x[:count].float().to(options.device)).argmax(1).cpu() == rows.hair[:count]).float().mean()
        )
    page = to_images(drawn[:18].expand(-1, 3, -1, -1))
    Image.fromarray(np.concatenate([np.concatenate(list(page[i : i + 9]), axis=1) for i in (0, 9)])).save(
        options.build / f"sheet-{recipe.size}-{type(generator).__name__}.png"
    )
    share = torch.bincount(guess, minlength=HAIR).float() / count
    figures: dict[str, Any] = {
        "colours drawn": int((share > 0.005).sum()), "largest share": round(float(share.max()), 4),
        "reader on real faces": round(real, 4),
    }  # fmt: skip
    if recipe.classes:
        figures["asked colour drawn"] = round(float((guess == asked).float().mean()), 4)
    return figures


def write_folder(name: str, options: Options, folder: Path) -> None:
    """The generator of a stage, with its critic where there is one, from the committed weights."""
    recipe = RECIPES[name]
    nets: dict[str, Any] = {"generator": recipe.make()}
    if not isinstance(nets["generator"], CVAE):
        nets["critic"] = recipe.critic()
    load_weights(options.weights / f"{name}.safetensors", nets)
    if recipe.classes:
        nets["generator"].config["labels"] = {"hair": list(ATTRIBUTES["hair"])}
    for part, net in nets.items():
        net.save(folder / part)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trained textbook generator as a folder for hotloop export.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write_folder(given.name, Options(), given.folder)


if __name__ == "__main__":
    main()
