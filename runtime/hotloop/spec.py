"""The one table of what each model family's networks take, give and assume.

Exporters, engines, buffers and sample inputs are computed from these rows; no other file repeats a dtype, a symbolic
shape, a scale factor or a beta schedule. A new family is a new row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .errors import InputError

__all__ = [
    "BOXES", "ENLARGED", "FAMILIES", "FIELD", "GROUPS", "LORA_COMPONENTS", "REWRITES", "WEIGHTED", "FaceConstants",
    "Family", "GeneratorFamily", "Network", "ScheduleConstants", "Tensor", "cells", "family", "phase_grid", "resolve",
]  # fmt: skip

Dim = int | str

# The exact rewrites of the UNet (hotloop.nets.rewrites), in the order in which their names are joined.
REWRITES = ("kv", "time", "prefix", "phase")
# Optional inputs of the UNet, declared at export; at zero each is an exact no-op.
GROUPS = ("controlnet", "identity", "timestep_cond")
# Of these, the ones that the UNet itself holds weights for: at zero it would be another network, so they must be given.
WEIGHTED = ("timestep_cond",)
# Components whose weights LoRAs change.
LORA_COMPONENTS = ("unet", "text_encoder")
_HALVES = (2, 4, 8, 16)
# How many times as large a side the upscaler makes; H4 and W4 are those sides.
ENLARGED = 4
# Channels of the animator's fields: two flows of 2, a mask, a colour of 4. And its boxes: eyes, mouth.
FIELD, BOXES = 9, 2


@dataclass(frozen=True)
class Tensor:
    """A named input or output: dtype and a shape whose strings are symbols (`N` images, `B` batch, `T` tokens...)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Network:
    """One network of a family.

    component  whose weights it holds: the folder of the checkpoint
    groups     the optional inputs it declares, by group; they stand at the end of `inputs` too, and are no-ops at zero
    rewrites   the exact rewrites its module carries, of REWRITES
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    groups: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    component: str = ""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of its shapes, each once, inputs' first."""
        dims = (dim for tensor in (*self.inputs, *self.outputs) for dim in tensor.shape)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))

    def pick(self, dims: Mapping[str, int]) -> dict[str, int]:
        """The values of its symbols, out of those of many (`Family.dims`)."""
        return {symbol: dims[symbol] for symbol in self.symbols}


@dataclass(frozen=True)
class ScheduleConstants:
    """Training schedule constants, named as in diffusers' scheduler configuration."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"


@dataclass(frozen=True)
class FaceConstants:
    """What the networks around a model of faces are made for (`networks`); those given are avatar's.

    parts        what the segmenter tells apart
    clip_size, clip_width  pixels per side that clip_image sees; width of both encoders' embeddings
    key_size     pixels per side of the animator's keyframe
    key_widths   channels of the maps of an eighth, a quarter and half of that a side; all of it has the last's
    controls, z  numbers that say what a frame shows, and what they leave open
    frames       of a motion; motion_z, actions, personalities: what it is drawn from
    critic_size, critic_channels  of the pictures that the critic scores; critic_classes: of their labels, 0: none
    """

    parts: int = 9
    clip_size: int = 128
    clip_width: int = 128
    key_size: int = 128
    key_widths: tuple[int, ...] = (96, 48, 16)
    controls: int = 32
    z: int = 8
    frames: int = 50
    motion_z: int = 8
    actions: int = 7
    personalities: int = 4
    critic_size: int = 64
    critic_channels: int = 3
    critic_classes: int = 0

    def networks(self) -> list[Network]:
        """Segmenter, upscaler, CLIP pair, animator, motions and critic. Pictures are in [-1, 1]; RGBA, mattes and masks
        in [0, 1], RGBA premultiplied; embeddings of unit length; boxes (x0, y0, x1, y1) in pictures."""
        small, grid = self.key_size, self.key_size // 2
        sides = (small // 8, small // 4, grid, small)
        widths = (*self.key_widths, self.key_widths[-1])
        maps = [
            _f32(name, width, side, side)
            for name, width, side in zip(("coarse", "middle", "fine", "finest"), widths, sides, strict=True)
        ]
        seen = (self.critic_size, self.critic_size)
        label = (Tensor("label", "int32", ("B",)),) if self.critic_classes else ()
        key_boxes, held = _f32("key_boxes", BOXES, 4), _f32("held", self.controls)
        return [
            Network(
                "segmenter", (_f32("image", 3, "H", "W"),),
                (_f32("parts", self.parts, "H", "W"), _f32("matte", 1, "H", "W")), component="segmenter",
            ),
            Network(
                "upscaler", (_f32("rgb", 3, "H", "W"), _f32("matte", 1, "H", "W")), (_f32("rgba", 4, "H4", "W4"),),
                component="upscaler",
            ),
            Network(
                "clip_text", (Tensor("input_ids", "int32", ("B", "T")),), (_f32("text_embeds", self.clip_width),),
                component="clip_text",
            ),
            Network(
                "clip_image", (_f32("image", 3, self.clip_size, self.clip_size),),
                (_f32("image_embeds", self.clip_width),), component="clip_image",
            ),
            # Once for a keyframe; its prior are z's means and log-variances.
            Network(
                "animator_encoder", (_f32("rgba", 4, small, small),),
                (*maps, _f32("prior", 2 * self.z), _f32("reveal", 4, small, small), key_boxes, held),
                component="animator",
            ),
            # Once for a frame: fields over the picture and, in place of it there, over boxes.
            Network(
                "animator", (*maps, key_boxes, held, _f32("controls", self.controls), _f32("z", self.z)),
                (_f32("whole", FIELD, grid, grid), _f32("parts", BOXES, FIELD, grid, grid), _f32("boxes", BOXES, 4)),
                component="animator",
            ),
            # Weights of actions and personalities: one-hot, or a blend that sums to 1.
            Network(
                "motions",
                (_f32("z", self.motion_z), _f32("action", self.actions), _f32("personality", self.personalities)),
                (_f32("controls", self.frames, self.controls),), component="motions",
            ),
            # How real a picture looks to what a generator was trained against; of a class, where it knows classes.
            Network("critic", (_f32("image", self.critic_channels, *seen), *label), (_f32("score", 1),),
                    component="critic"),
        ]  # fmt: skip


def _f32(name: str, *shape: Dim) -> Tensor:
    """A float32 tensor with a row for each of the batch."""
    return Tensor(name, "float32", ("B", *shape))


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
    unet_widths      channels of the UNet's levels, the finest first
    unet_layers      blocks per level going down; going up there is one more
    kv_width         floats of all cross-attentions' keys and values for one token
    time_width       floats that all residual blocks take of one timestep
    cond_width       width of `timestep_cond` (diffusers' time_cond_proj_dim)
    eye_size, eye_width  pixels per side that the CLIP image encoder sees; width of the embedding it gives
    faces            of the networks around a model of faces, of the bundles that carry some
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
    schedule: ScheduleConstants
    image_channels: int = 3
    min_cells: int = 8
    max_size: int = 2048
    unet_widths: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_layers: int = 2
    kv_width: int = 24960
    time_width: int = 20160
    cond_width: int = 256
    eye_size: int = 224
    eye_width: int = 1024
    faces: FaceConstants = FaceConstants()

    @property
    def inpaint_channels(self) -> bool:
        """True when the UNet itself takes mask and masked image."""
        return self.unet_channels > self.latent_channels

    @property
    def summary(self) -> str:
        """What tells it from others of its kind, in a word or two."""
        return self.schedule.prediction_type

    @property
    def networks(self) -> dict[str, Network]:
        """Every network, the UNet plain."""
        return self.split()

    def plain(self, groups: Sequence[str]) -> dict[str, Network]:
        """Every network without rewrites, the UNet with those of an engine's optional inputs that it needs."""
        return self.split(groups=[name for name in groups if name in WEIGHTED])

    def split(self, rewrites: Sequence[str] = (), groups: Sequence[str] = ()) -> dict[str, Network]:
        """Every network, the UNet with these rewrites and optional inputs.

        `kv` adds the network "prompt", `time` adds "time". With `prefix` the symbol of the UNet's samples and times is
        N, images, and B is N or 2 N: row i of the context and of `out` belongs to sample i mod N.
        Raises InputError for an unknown rewrite or group.
        """
        rewrites = _ordered("rewrites", rewrites, REWRITES)
        groups = _ordered("groups", groups, GROUPS)
        latent = (self.latent_channels, "h", "w")
        pixels = (self.image_channels, "H", "W")
        images = "N" if "prefix" in rewrites else "B"
        states = Tensor("context", "float32", ("B", "T", self.context_dim))
        packed = Tensor("context_kv", "float32", ("B", "T", self.kv_width))
        timestep = Tensor("timestep", "float32", (images,))
        rows = Tensor("time_rows", "float32", (images, self.time_width))
        # A timestep's condition goes where the timestep goes.
        at_time = self._group("timestep_cond", "B" if "time" in rewrites else images)
        timed = {"timestep_cond": at_time} if "timestep_cond" in groups else {}
        own = {name: self._group(name, images) for name in groups if name != "timestep_cond"}
        if "time" not in rewrites:
            own |= timed
        networks = [
            Network(
                "text_encoder",
                (Tensor("input_ids", "int32", ("B", "T")),),
                # Every hidden state the encoder can be asked for is an output, so that clip_skip needs no re-export.
                (
                    Tensor("last_hidden_state", "float32", ("B", "T", self.context_dim)),
                    Tensor("penultimate_hidden_state", "float32", ("B", "T", self.context_dim)),
                ),
                component="text_encoder",
            ),
            Network(
                "unet",
                (
                    Tensor("sample", "float32", (images, self.unet_channels, "h", "w")),
                    rows if "time" in rewrites else timestep,
                    packed if "kv" in rewrites else states,
                    *(tensor for group in own.values() for tensor in group),
                ),
                (Tensor("out", "float32", ("B", *latent)),),
                own,
                rewrites,
                component="unet",
            ),
            Network(
                "vae_decoder",
                (Tensor("latents", "float32", ("B", *latent)),),
                (Tensor("image", "float32", ("B", *pixels)),),
                rewrites=("phase",) if "phase" in rewrites else (),
                component="vae",
            ),
            Network(
                "vae_encoder",
                (Tensor("image", "float32", ("B", *pixels)),),
                (Tensor("mean", "float32", ("B", *latent)), Tensor("logvar", "float32", ("B", *latent))),
                component="vae",
            ),
            # CLIP's, of the bundles that carry one.
            Network(
                "image_encoder",
                (Tensor("pixel_values", "float32", ("B", self.image_channels, self.eye_size, self.eye_size)),),
                (Tensor("image_embeds", "float32", ("B", self.eye_width)),),
                component="image_encoder",
            ),
        ]
        # The small VAE of the bundles that carry one beside the full one.
        networks += [
            replace(row, name="tiny_" + row.name, rewrites=(), component="tiny_vae")
            for row in networks
            if row.component == "vae"
        ]
        networks += self.faces.networks()
        if "kv" in rewrites:
            networks.append(Network("prompt", (states,), (packed,), component="unet"))
        if "time" in rewrites:
            inputs = (Tensor("timestep", "float32", ("B",)), *(at_time if timed else ()))
            outputs = (replace(rows, shape=("B", self.time_width)),)
            networks.append(Network("time", inputs, outputs, timed, component="unet"))
        return {network.name: network for network in networks}

    def _group(self, name: str, images: str) -> tuple[Tensor, ...]:
        if name == "identity":
            return (
                Tensor("identity_kv", "float32", ("B", "Ti", self.kv_width)),
                Tensor("identity_scale", "float32", ("B",)),
            )
        if name == "timestep_cond":
            return (Tensor("timestep_cond", "float32", (images, self.cond_width)),)
        # One residual per skip: the first convolution's, then every block's and every downsampler's.
        levels = list(enumerate(self.unet_widths))
        skips = [(0, self.unet_widths[0])]
        for level, width in levels:
            skips += [(level, width)] * self.unet_layers
            skips += [(level + 1, width)] if level < len(levels) - 1 else []
        sides = [(f"h{2**level}", f"w{2**level}") if level else ("h", "w") for level, _ in levels]
        return (
            *(Tensor(f"control_{i}", "float32", ("B", c, *sides[level])) for i, (level, c) in enumerate(skips)),
            Tensor("control_mid", "float32", ("B", self.unet_widths[-1], *sides[-1])),
        )

    def dims(
        self, *, width: int, height: int, batch: int, images: int | None = None, tokens: int | None = None,
        identity_tokens: int = 1,
    ) -> dict[str, int]:  # fmt: skip
        """The value of every symbol for `images` (default: `batch`) images of width x height pixels."""
        return {
            "B": batch, "N": images or batch, "T": tokens or self.vocab_tokens, "Ti": identity_tokens,
            "H": height, "W": width, "H4": ENLARGED * height, "W4": ENLARGED * width,
            **cells(height // self.vae_factor, width // self.vae_factor),
        }  # fmt: skip

    def with_constants(self, constants: Mapping[str, object]) -> Family:
        """This row with a checkpoint's own constants (a bundle's manifest lists them).

        Raises InputError for a name that is not a constant, or a value that is not positive and of the row's own type.
        """
        place = f"spec.{self.name}"
        own: dict[str, object] = {}
        for name, value in constants.items():
            if name not in _TABLES:
                own[name] = _alike(place, self, name, value)
                continue
            if not isinstance(value, Mapping):
                raise InputError(place, f"{name} must be a table of constants", value)
            table = getattr(self, name)
            own[name] = replace(table, **{key: _alike(place, table, key, one) for key, one in value.items()})
        return replace(self, **own)  # type: ignore[arg-type]


@dataclass(frozen=True)
class GeneratorFamily(Family):
    """The row of bundles that hold a generator, which draws in one call: no text encoder, no UNet, no schedule.

    z_width      numbers of unit noise that a picture is made of
    classes      of the label; 0: it takes none
    controls     numbers of the condition; 0: it takes none
    style_width  width of w, where it is a pair of `mapping` and `synthesis`; 0: it is one network, `generator`
    """

    z_width: int = 100
    classes: int = 0
    controls: int = 0
    style_width: int = 0

    @property
    def summary(self) -> str:
        told = [f"{self.classes} classes"] * bool(self.classes) + [f"{self.controls} controls"] * bool(self.controls)
        return ", ".join([f"z of {self.z_width}", *told])

    def split(self, rewrites: Sequence[str] = (), groups: Sequence[str] = ()) -> dict[str, Network]:
        """Every network, and the critic of the bundles that carry one. Raises InputError for any rewrite or group."""
        if rewrites or groups:
            raise InputError("spec", "a generator has no rewrites and no optional inputs", [*rewrites, *groups])
        width, height = self.default_size
        label = (Tensor("label", "int32", ("B",)),) if self.classes else ()
        controls = (Tensor("controls", "float32", ("B", self.controls)),) if self.controls else ()
        z = (Tensor("z", "float32", ("B", self.z_width)), *label, *controls)
        w = (Tensor("w", "float32", ("B", self.style_width)),)
        image = (Tensor("image", "float32", ("B", self.image_channels, height, width)),)
        score = (Tensor("score", "float32", ("B", 1)),)
        rows = (
            [("mapping", z, w), ("synthesis", w, image)] if self.style_width else [("generator", z, image)]
        )  # fmt: skip
        networks = [Network(name, inputs, outputs, component="generator") for name, inputs, outputs in rows]
        networks.append(Network("critic", (*image, *label), score, component="critic"))
        return {network.name: network for network in networks}


_TABLES = ("schedule", "faces")
_LARGEST = 1 << 20  # of a constant: what is made of it has to fit into memory


def _alike(place: str, row: Family | FaceConstants | ScheduleConstants, name: str, value: object) -> object:
    """The value, if it may stand where the row has its own: same type, positive."""
    known = sorted(field for field in row.__dataclass_fields__ if field not in _TABLES)
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
        raise InputError(place, f"{name} must be like {like!r}, whole numbers below {_LARGEST}", value)
    return value


def _positive(value: object, kind: type) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    return 0 < value < (_LARGEST if kind is int else float("inf"))  # type: ignore[operator]


def _ordered(what: str, names: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := sorted(set(names) - set(known)):
        raise InputError("spec", f"{what} must be among {', '.join(known)}", unknown)
    return tuple(name for name in known if name in names)


def cells(h: int, w: int) -> dict[str, int]:
    """The symbols of latents of h x w cells and of their halves: h, h2, h4... Halving an odd side rounds up."""
    return {"h": h, "w": w} | {f"{name}{by}": -(-side // by) for by in _HALVES for name, side in (("h", h), ("w", w))}


def phase_grid(family: Family) -> int:
    """Pixels that width and height must be multiples of for the UNet's rewrite `phase`: every halving then comes out
    even."""
    return family.vae_factor * 2 ** (len(family.unet_widths) - 1)


def resolve(shape: tuple[Dim, ...], dims: Mapping[str, int]) -> tuple[int, ...]:
    """A symbolic shape in numbers: resolve(("B", 4, "h", "w"), {"B": 2, "h": 64, "w": 64}) == (2, 4, 64, 64)."""
    return tuple(d if isinstance(d, int) else dims[d] for d in shape)


_SD15 = Family(
    name="sd15", latent_channels=4, unet_channels=4, vae_factor=8, scaling_factor=0.18215, grid=8, context_dim=768,
    vocab_tokens=77, default_size=(512, 512), schedule=ScheduleConstants(),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        _SD15,
        replace(_SD15, name="sd15-inpaint", unet_channels=9),
        replace(_SD15, name="sd21", context_dim=1024),
        replace(_SD15, name="sd21-v", context_dim=1024, default_size=(768, 768),
                schedule=ScheduleConstants(prediction_type="v_prediction")),
        replace(_SD15, name="avatar-tiny", vae_factor=4, scaling_factor=1.0, grid=4, context_dim=128,
                default_size=(64, 64), max_size=1024,
                unet_widths=(64, 96, 96), unet_layers=1, kv_width=1152, time_width=960),
        replace(_SD15, name="avatar", vae_factor=4, scaling_factor=1.0, grid=4, context_dim=128,
                default_size=(128, 128), max_size=1024,
                unet_widths=(32, 64, 96, 96), unet_layers=1, kv_width=1152, time_width=1056),
        # What a checkpoint has, it has not: these fields match none.
        GeneratorFamily(
            name="generator", latent_channels=0, unet_channels=0, vae_factor=1, scaling_factor=1.0, grid=1,
            context_dim=0, vocab_tokens=0, default_size=(28, 28), schedule=ScheduleConstants(), image_channels=1,
        ),
    )
}  # fmt: skip


def family(name: str) -> Family:
    """The row of a family. Raises InputError with the known names."""
    if name not in FAMILIES:
        raise InputError("spec", "family must be one of " + ", ".join(FAMILIES), name)
    return FAMILIES[name]
