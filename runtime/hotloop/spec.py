"""The one table of what each model family's networks take, give and assume.

Exporters, engines, buffers and sample inputs are computed from these rows; no other file repeats a dtype, a symbolic
shape, a scale factor or a beta schedule. A new family is a new row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .errors import InputError

__all__ = ["FAMILIES", "Family", "Network", "Schedule", "Tensor", "family", "resolve"]

Dim = int | str


@dataclass(frozen=True)
class Tensor:
    """A named input or output: dtype and a shape whose strings are symbols (`N` images, `B` batch, `T` tokens...)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Network:
    """One network of a family; `groups` are optional inputs, fixed at export and listed in the manifest."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    groups: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """Training schedule constants, named as in diffusers' scheduler configuration."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"


@dataclass(frozen=True)
class Family:
    """A model family: constants and networks.

    latent_channels  channels of the VAE's latents
    unet_channels    channels of the UNet's input (9 for inpainting networks: latents, mask, masked image)
    vae_factor       pixels per latent cell
    scaling_factor   latents * scaling_factor has unit variance; the VAE decoder takes latents / scaling_factor
    grid             width and height must be multiples of it; the UNet itself takes any number of cells
    context_dim      width of the text encoder's hidden states
    default_size     (width, height) when none is asked for
    min_cells        latent cells per side: below that the UNet's deepest level has no picture left
    max_size         pixels per side
    """

    name: str
    latent_channels: int
    unet_channels: int
    vae_factor: int
    scaling_factor: float
    grid: int
    context_dim: int
    vocab_tokens: int
    default_size: tuple[int, int]
    schedule: Schedule
    image_channels: int = 3
    min_cells: int = 8
    max_size: int = 2048

    @property
    def inpaint_channels(self) -> bool:
        """True when the UNet itself takes mask and masked image."""
        return self.unet_channels > self.latent_channels

    @property
    def networks(self) -> dict[str, Network]:
        latent = (self.latent_channels, "h", "w")
        pixels = (self.image_channels, "H", "W")
        return {
            "text_encoder": Network(
                "text_encoder",
                (Tensor("input_ids", "int32", ("B", "T")),),
                # Every hidden state the encoder can be asked for is an output, so that clip_skip needs no re-export.
                (
                    Tensor("last_hidden_state", "float32", ("B", "T", self.context_dim)),
                    Tensor("penultimate_hidden_state", "float32", ("B", "T", self.context_dim)),
                ),
            ),
            "unet": Network(
                "unet",
                (
                    Tensor("sample", "float32", ("B", self.unet_channels, "h", "w")),
                    Tensor("timestep", "float32", ("B",)),
                    Tensor("context", "float32", ("B", "T", self.context_dim)),
                ),
                (Tensor("out", "float32", ("B", *latent)),),
            ),
            "vae_decoder": Network(
                "vae_decoder",
                (Tensor("latents", "float32", ("B", *latent)),),
                (Tensor("image", "float32", ("B", *pixels)),),
            ),
            "vae_encoder": Network(
                "vae_encoder",
                (Tensor("image", "float32", ("B", *pixels)),),
                (Tensor("mean", "float32", ("B", *latent)), Tensor("logvar", "float32", ("B", *latent))),
            ),
        }

    def dims(self, *, width: int, height: int, batch: int, tokens: int | None = None) -> dict[str, int]:
        """The value of every symbol for images of width x height pixels."""
        return {
            "B": batch, "T": tokens or self.vocab_tokens, "H": height, "W": width,
            "h": height // self.vae_factor, "w": width // self.vae_factor,
        }  # fmt: skip

    def with_constants(self, constants: Mapping[str, object]) -> Family:
        """This row with a checkpoint's own constants (a bundle's manifest lists them).

        Raises InputError for a name that is not a constant, or a value that is not positive and of the row's own type.
        """
        place = f"spec.{self.name}"
        values = dict(constants)
        schedule = values.pop("schedule", {})
        if not isinstance(schedule, Mapping):
            raise InputError(place, "schedule must be a table of constants", schedule)
        own = {name: _alike(place, self, name, value) for name, value in values.items()}
        its = {name: _alike(place, self.schedule, name, value) for name, value in schedule.items()}
        return replace(self, schedule=replace(self.schedule, **its), **own)  # type: ignore[arg-type]


def _alike(place: str, row: Family | Schedule, name: str, value: object) -> object:
    """The value, if it may stand where the row has its own: same type, positive."""
    known = sorted(field for field in row.__dataclass_fields__ if field != "schedule")
    if name not in known:
        raise InputError(place, f"constants must be among {known}", name)
    like = getattr(row, name)
    if isinstance(like, tuple):
        fits = isinstance(value, (list, tuple)) and len(value) == len(like) and all(_positive(v, int) for v in value)
        value = tuple(value) if fits else value  # type: ignore[arg-type]
    elif isinstance(like, str):
        fits = isinstance(value, str)
    else:
        fits = _positive(value, int) or (isinstance(like, float) and _positive(value, float))
    if not fits:
        raise InputError(place, f"{name} must be like {like!r}", value)
    return value


def _positive(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < value < float("inf")  # type: ignore[operator]


def resolve(shape: tuple[Dim, ...], dims: Mapping[str, int]) -> tuple[int, ...]:
    """A symbolic shape in numbers: resolve(("B", 4, "h", "w"), {"B": 2, "h": 64, "w": 64}) == (2, 4, 64, 64)."""
    return tuple(d if isinstance(d, int) else dims[d] for d in shape)


_SD15 = Family(
    name="sd15", latent_channels=4, unet_channels=4, vae_factor=8, scaling_factor=0.18215, grid=8, context_dim=768,
    vocab_tokens=77, default_size=(512, 512), schedule=Schedule(),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        _SD15,
        replace(_SD15, name="sd15-inpaint", unet_channels=9),
        replace(_SD15, name="sd21", context_dim=1024),
        replace(_SD15, name="sd21-v", context_dim=1024, default_size=(768, 768),
                schedule=Schedule(prediction_type="v_prediction")),
        replace(_SD15, name="avatar-tiny", vae_factor=4, scaling_factor=1.0, grid=4, context_dim=128,
                default_size=(64, 64), max_size=1024),
    )
}  # fmt: skip


def family(name: str) -> Family:
    """The row of a family. Raises InputError with the known names."""
    if name not in FAMILIES:
        raise InputError("spec", "family must be one of " + ", ".join(FAMILIES), name)
    return FAMILIES[name]
