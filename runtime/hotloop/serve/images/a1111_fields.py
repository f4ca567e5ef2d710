"""A request as AUTOMATIC1111's clients send it -> fields of the one table. What does not map is refused by name, or
told in `warnings` where it is without effect; nothing is dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...image.enlarge import A1111 as UPSCALERS
from ...samplers.face import options as options_of
from ...samplers.names import resolve
from . import a1111_lists as lists
from .pictures import Picture, base64_picture
from .refusals import Refusal

if TYPE_CHECKING:
    from .part import Images

__all__ = ["Translated", "translated"]

# Without effect here; told where it is not what stands beside it, A1111's own default.
_IDLE: Mapping[str, Any] = {
    "subseed": -1, "subseed_strength": 0, "seed_resize_from_h": -1, "seed_resize_from_w": -1, "restore_faces": False,
    "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False, "s_churn": 0, "s_tmax": 0, "s_tmin": 0,
    "s_noise": 1, "s_min_uncond": 0, "save_images": False, "styles": [], "firstphase_width": 0, "firstphase_height": 0,
    "initial_noise_multiplier": 1, "image_cfg_scale": 1.5, "refiner_checkpoint": None, "refiner_switch_at": None,
    "disable_extra_networks": False, "comments": None, "force_task_id": None, "infotext": None,
    "latent_mask": None, "inpaint_full_res_padding": 0, "script_args": [],
}  # fmt: skip
_USED = {
    "prompt", "negative_prompt", "seed", "steps", "cfg_scale", "width", "height", "batch_size", "n_iter",
    "sampler_name", "sampler_index", "scheduler", "eta", "denoising_strength", "override_settings",
    "override_settings_restore_afterwards", "send_images", "script_name", "alwayson_scripts", "enable_hr", "hr_scale",
    "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name",
    "hr_scheduler", "hr_prompt", "hr_negative_prompt", "init_images", "mask", "mask_blur", "mask_blur_x", "mask_blur_y",
    "inpainting_fill", "inpaint_full_res", "inpainting_mask_invert", "resize_mode", "include_init_images",
}  # fmt: skip
_SCHEDULERS = {"automatic": {}, "karras": {"sigmas": "karras"}, "exponential": {"sigmas": "exponential"}}
_RESIZE = ("default", "crop", "fill")
_LORA = re.compile(r"<lora:([^:<>]{1,128})(?::([^:<>]{0,16}))?>")
_UNSURE = (None, "", "None", "none", "Use same checkpoint", "Use same sampler", "Use same scheduler", "Automatic")


@dataclass
class Translated:
    """values: fields of the table; sampler, scheduler: as an answer names them."""

    pipeline: str
    bundle: str
    values: dict[str, Any]
    prompt: str
    negative: str
    sampler: str
    scheduler: str
    loras: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)
    fill: bool = False
    warnings: list[str] = field(default_factory=list)


def translated(part: Images, given: Mapping[str, Any], options: Mapping[str, Any], *, edits: bool) -> Translated:
    """Raises Refusal."""
    warnings = _idle(given)
    override = given.get("override_settings") or {}
    if not isinstance(override, dict):
        raise _wrong("override_settings", "an object")
    checkpoint = override.get("sd_model_checkpoint") or options.get("sd_model_checkpoint")
    bundle = lists.bundle_of(part, checkpoint)
    skip = override.get("CLIP_stop_at_last_layers", options.get("CLIP_stop_at_last_layers", 1))
    known = {"sd_model_checkpoint", "CLIP_stop_at_last_layers", "sd_vae"}
    warnings += [f"override_settings: {name} is without effect" for name in override if name.isidentifier()
                 and name not in known][:16]  # fmt: skip
    if override.get("sd_vae") not in _UNSURE:
        raise _wrong("override_settings", "without sd_vae: a model has its own")
    _scripts(given, warnings)
    prompt, loras = _words(given, "prompt")
    negative, more = _words(given, "negative_prompt")
    values: dict[str, Any] = {
        "prompt": prompt, "negative_prompt": negative, "seed": _number(given, "seed", -1),
        "num_inference_steps": _number(given, "steps"), "guidance_scale": _number(given, "cfg_scale", whole=False),
        "width": _number(given, "width"), "height": _number(given, "height"), "clip_skip": _clip_skip(skip),
        "num_images_per_prompt": (_number(given, "batch_size") or 1) * (_number(given, "n_iter") or 1),
    }  # fmt: skip
    words, others = (given.get(name) or "" for name in ("prompt", "negative_prompt"))
    told = Translated("txt2img", bundle, values, words, others, "", "", [*loras, *more], warnings=warnings)
    _sampler(part, given, told)
    if edits:
        _edit(part, given, told)
    else:
        _hires(given, told)
    return told


def _idle(given: Mapping[str, Any]) -> list[str]:
    """A warning for every field that is without effect and not what it would be without."""
    warnings = []
    for name, value in given.items():
        if name in _USED:
            continue
        if name not in _IDLE:
            warnings.append(f"{name[:64]} is unknown" if name.isidentifier() else "a field is unknown")
        elif value not in (_IDLE[name], None, "", [], False):
            warnings.append(f"{name} is without effect")
    return warnings[:64]


def _scripts(given: Mapping[str, Any], warnings: list[str]) -> None:
    if given.get("script_name") not in (None, "", "None"):
        raise _wrong("script_name", "left out: there are no scripts here")
    always = given.get("alwayson_scripts") or {}
    if not isinstance(always, dict):
        raise _wrong("alwayson_scripts", "an object")
    for name, one in always.items():
        args = one.get("args", []) if isinstance(one, dict) else one
        if not isinstance(args, (list, dict)) or (args and _acts(args)):
            raise _wrong("alwayson_scripts", "without scripts that act: there are none here")
        warnings.append(f"alwayson_scripts: {name[:64]} is without effect" if name.isidentifier()
                        else "alwayson_scripts are without effect")  # fmt: skip


def _acts(args: Any) -> bool:
    """Whether a script's arguments switch it on: by their first, or by `enabled`."""
    first = next(iter(args.values() if isinstance(args, dict) else args))
    if isinstance(first, dict):
        return bool(first.get("enabled", True))
    return first is not False


def _words(given: Mapping[str, Any], name: str) -> tuple[str, list[dict[str, Any]]]:
    """A prompt without its `<lora:name:weight>`, and those."""
    text = given.get(name)
    if text is None:
        return "", []
    if not isinstance(text, str):
        raise _wrong(name, "text")
    loras = []
    for found in _LORA.finditer(text):
        try:
            scale = float(found[2]) if found[2] else 1.0
        except ValueError:
            raise _wrong(name, "such that a LoRA's weight is a number") from None
        loras.append({"name": found[1], "scale": scale})
    return _LORA.sub("", text), loras


def _sampler(part: Images, given: Mapping[str, Any], told: Translated) -> None:
    name = given.get("sampler_name") or given.get("sampler_index")
    default = part.names.bundles[told.bundle]["defaults"]["sampler"]
    if name is not None and not isinstance(name, str):
        raise _wrong("sampler_name", "a name")
    try:
        sampler, options = resolve(name or default)
    except InputError:
        raise Refusal("invalid_body", "a sampler must be one that GET samplers lists", param="sampler_name") from None
    scheduler = given.get("scheduler") or "automatic"
    if not isinstance(scheduler, str) or scheduler.lower() not in _SCHEDULERS:
        raise Refusal("invalid_body", "a scheduler must be one that GET schedulers lists", param="scheduler")
    options = {**options, **_SCHEDULERS[scheduler.lower()]}
    takes = options_of(sampler)
    if "sigmas" in options and "sigmas" not in takes:
        raise _wrong("scheduler", "Automatic with this sampler")
    eta = given.get("eta")
    if eta is not None and "eta" in takes:
        options["eta"] = _number(given, "eta", whole=False)
    elif eta not in (None, 0, 1):
        told.warnings.append("eta is without effect with this sampler")
    told.values |= {"sampler": sampler, "sampler_options": options}
    told.sampler = name or next((one for one, own in lists.SAMPLERS.items() if own == sampler), sampler)
    told.scheduler = scheduler.title()


def _hires(given: Mapping[str, Any], told: Translated) -> None:
    if not given.get("enable_hr"):
        return
    for name in ("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt"):
        if given.get(name) not in (*_UNSURE, given.get(name.removeprefix("hr_"))):
            raise _wrong(name, "left out: the larger pass is drawn as the first")
    scale = _number(given, "hr_scale", 2.0, whole=False)
    x, y = _number(given, "hr_resize_x", 0) or 0, _number(given, "hr_resize_y", 0) or 0
    if x or y:
        width, height = told.values["width"], told.values["height"]
        if not width or not height or (x and y and x * height != y * width):
            raise _wrong("hr_resize_x", "of the picture's shape, with width and height given")
        scale = x / width if x else y / height
    upscaler = given.get("hr_upscaler") or "Latent"
    if not isinstance(upscaler, str) or upscaler not in UPSCALERS:
        raise _wrong("hr_upscaler", f"one of {', '.join(UPSCALERS)}")
    told.values |= {
        "hires": scale, "hires_steps": _number(given, "hr_second_pass_steps", 0) or None,
        "hires_upscaler": UPSCALERS[upscaler], "hires_strength": _number(given, "denoising_strength", 0.7, whole=False),
        "hires_fidelity": 0.0,
    }  # fmt: skip


def _edit(part: Images, given: Mapping[str, Any], told: Translated) -> None:
    limits, files = part.settings.limits, given.get("init_images")
    if not files:
        raise Refusal("not_found")
    if not isinstance(files, list) or len(files) != 1:
        raise _wrong("init_images", "a list of one picture")
    image = base64_picture(files[0], limits, "init_images")
    mode = _number(given, "resize_mode", 0)
    if mode not in range(len(_RESIZE)):
        raise _wrong("resize_mode", "0 (stretch), 1 (crop) or 2 (fill)")
    strength = _number(given, "denoising_strength", 0.75, whole=False)
    told.values["strength"] = strength
    if given.get("mask") is None:
        told.pipeline, told.pictures = "img2img", {"image": image}
        told.values["resize_mode"] = _RESIZE[int(mode)]
        return
    fill = _number(given, "inpainting_fill", 0)
    if fill not in (0, 1):
        raise _wrong("inpainting_fill", "0 (fill) or 1 (original)")
    mask = base64_picture(given["mask"], limits, "mask")
    reads = "black" if given.get("inpainting_mask_invert") else "white"
    told.pipeline, told.fill = "inpaint", fill == 0
    told.pictures = {"image": image, "mask_image": mask.as_mask(reads, image, "mask")}
    blurs = [given.get(name) for name in ("mask_blur", "mask_blur_x", "mask_blur_y") if given.get(name) is not None]
    if any(blur != blurs[0] for blur in blurs):
        raise _wrong("mask_blur", "the same both ways")
    told.values["mask_blur"] = _number({"mask_blur": blurs[0] if blurs else 4}, "mask_blur", whole=False)
    if given.get("inpaint_full_res", True):
        told.values["padding_mask_crop"] = _number(given, "inpaint_full_res_padding", 0)


def _clip_skip(layers: Any) -> int:
    if layers not in (1, 2) or isinstance(layers, bool):
        raise _wrong("override_settings", "with CLIP_stop_at_last_layers 1 or 2")
    return int(layers) - 1


def _number(given: Mapping[str, Any], name: str, default: Any = None, *, whole: bool = True) -> Any:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and value != int(value)):
        raise _wrong(name, "an integer" if whole else "a number")
    return int(value) if whole else float(value)


def _wrong(name: str, rule: str) -> Refusal:
    return Refusal("invalid_value", f"{name} must be {rule}", param=name)
