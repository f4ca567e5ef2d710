"""What a server of pictures is started with: THE table of its settings, from flags, the environment and a TOML file.

A setting is one line of `Settings`. Its flag is its name with dashes, its variable HOTLOOP_SERVE_ and its name in
capitals, its key in the file its name. Flags go before the environment, the environment before the file; what no
setting has the name of is refused, wherever it stands.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hotloop_kernels import usable_cores

from ...bundle import BUILTIN, builtin
from ...checks import check_integer, check_number
from ...errors import InputError
from ...files import read_file
from ..config import Access
from .limits import Limits

__all__ = ["LONGEST", "NAME", "PREFIX", "Settings", "gathered", "names_of", "shown"]

PLACE = "serve"
PREFIX = "HOTLOOP_SERVE_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,127}")
LONGEST = 86_400.0  # seconds of a request
_LARGEST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings(Access):
    """bundles     bundles, folders of bundles, or built-in models' names; loras: LoRA files, or folders of them
    workers     worker processes, each with all bundles; engine, device, threads: of each, as for `hotloop.load`, the
                threads by default its share of the cores
    lanes       requests that a worker draws at once, row by row
    queue       requests that wait for a worker; more are answered 503
    timeout     seconds that a request may take; x-request-timeout-seconds may say less
    drain       seconds that requests under way have at the end
    linger      seconds, at least, that 503 is answered before the address is given back
    strict      refuse fields that are not known; else they are told in `warnings`
    docs        whether /openapi.json is told
    log         json: a line for each request, without prompts; or off
    profile     cpu or gpu: which limits hold; limits: some of them changed

    Raises InputError, naming the setting, its rule and what was given.
    """

    bundles: tuple[str, ...] = BUILTIN[:1]
    loras: tuple[str, ...] = ()
    workers: int = 1
    engine: str = "auto"
    device: str = "auto"
    threads: int | None = None
    lanes: int = 4
    queue: int = 8
    timeout: float = 300.0
    drain: float = 60.0
    linger: float = 5.0
    strict: bool = False
    docs: bool = True
    log: str = "json"
    profile: str = "cpu"
    limits: Limits = field(default_factory=Limits)

    @property
    def threads_each(self) -> int | None:
        """Of a worker: where nothing is told, its share of the cores; None: all of them."""
        if self.threads is not None or self.workers == 1:
            return self.threads
        return max(1, usable_cores() // self.workers)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least, most in (("workers", 1, 64), ("lanes", 1, 64), ("queue", 1, 10_000)):
            check_integer(PLACE, name, getattr(self, name), least, most)
        for name, lowest, highest in (("timeout", 0.001, LONGEST), ("drain", 0, 86_400), ("linger", 0, 600)):
            check_number(PLACE, name, getattr(self, name), lowest, highest)
        if self.threads is not None:
            check_integer(PLACE, "threads", self.threads, 1, 1024)
        for name, words in (("log", ("json", "off")), ("profile", ("cpu", "gpu")), ("device", ("auto", "cpu", "cuda"))):
            if getattr(self, name) not in words:
                raise InputError(PLACE, f"{name} must be one of {', '.join(words)}", getattr(self, name))
        if not self.bundles:
            raise InputError(PLACE, "bundles must name one at least")


def gathered(
    flags: Mapping[str, Any], environment: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """The settings that flags, the environment and a file tell together; a flag that is None was not given.

    Raises InputError.
    """
    environment = os.environ if environment is None else environment
    told, limits = dict[str, Any](), dict[str, Any]()
    for values, where in ((_of_file(file), "file"), (_of_environment(environment), "environment"), (flags, "flag")):
        changed = values.get("limits")
        if changed is not None:
            if not isinstance(changed, Mapping):
                raise InputError(PLACE, f"limits of the {where} must be a table", changed)
            limits |= changed
        told |= {name: value for name, value in values.items() if name != "limits" and value is not None}
    return Settings(**told, limits=Limits.of(told.get("profile", "cpu"), limits))


def _of_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        values = tomllib.loads(read_file(file, most=_LARGEST).decode())
    except (OSError, ValueError) as error:
        raise InputError(PLACE, "config must be a TOML file that can be read", str(file)) from error
    kinds = {one.name: str(one.type) for one in fields(Settings)}
    for name, value in values.items():
        if name not in kinds:
            raise InputError(PLACE, f"config may have the keys {', '.join(kinds)}", name)
        values[name] = _typed(name, kinds[name], value)
    return values


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    kinds = {one.name: str(one.type) for one in fields(Settings)}
    values, limits = dict[str, Any](), dict[str, Any]()
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name.startswith("limits_"):
            limits[name.removeprefix("limits_")] = _typed(name, "float" if "." in text else "int", text)
        elif name in kinds and name != "limits":
            values[name] = _typed(name, kinds[name], text)
        else:
            raise InputError(PLACE, "no setting has the name of this variable", variable)
    if (token := environment.get("HOTLOOP_TOKEN")) and "token" not in values:
        values["token"] = token
    return values | ({"limits": limits} if limits else {})


def _typed(name: str, kind: str, value: Any) -> Any:
    """A value out of a text or a TOML file as a setting of that type has it. Raises InputError."""
    kind = kind.removesuffix(" | None")
    try:
        if kind == "bool":
            if value in (True, False) and isinstance(value, bool):
                return value
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        if kind in ("int", "float") and not isinstance(value, bool):
            return int(value) if kind == "int" and not isinstance(value, float) else float(value)
        if kind.startswith("tuple"):
            many = value.split(os.pathsep) if isinstance(value, str) else list(value)
            return tuple(one for one in many if isinstance(one, str) and one)
        if kind == "str" and isinstance(value, str):
            return value
        if kind == "Limits" and isinstance(value, Mapping):
            return value
    except (KeyError, ValueError, AttributeError, TypeError):
        pass
    raise InputError(PLACE, f"{name} must be a {kind}", value)


def names_of(settings: Settings) -> tuple[dict[str, Path], dict[str, Path]]:
    """The scan of a server's start: names of bundles and of LoRAs -> where they lie. Requests name them, never paths.

    Raises InputError for what is not there, a name twice, and a name that no request could say.
    """
    bundles: dict[str, Path] = {}
    for given in settings.bundles:
        if given in BUILTIN:
            _add(bundles, given, builtin(given))
            continue
        folder = Path(given)
        within = [folder] if (folder / "manifest.json").is_file() else _listed(folder, "*/manifest.json")
        if not within:
            rule = "a bundle must be a folder with manifest.json, a folder of such, or built in"
            raise InputError(PLACE, rule, given)
        for one in within:
            _add(bundles, one.resolve().name, one.resolve())
    loras: dict[str, Path] = {}
    for given in settings.loras:
        path = Path(given)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        if not files:
            raise InputError(PLACE, "loras must be safetensors files, or folders of them", given)
        for one in files:
            if one.is_symlink() or one.stat().st_nlink > 1:
                raise InputError(PLACE, "a LoRA must be a file of its own, no link", one.name)
            _add(loras, one.stem, one.resolve())
    return bundles, loras


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(one.parent for one in folder.glob(pattern) if not one.parent.is_symlink())
    except OSError:
        return []


def _add(names: dict[str, Path], name: str, path: Path) -> None:
    if not NAME.fullmatch(name):
        raise InputError(PLACE, f"a name must match {NAME.pattern}", name)
    if name in names and names[name] != path:
        raise InputError(PLACE, "two things of one name cannot be told apart", name)
    names[name] = path


def shown(settings: Settings) -> Iterable[tuple[str, Any]]:
    """Setting and value, for `--check`: the token is not shown."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        yield one.name, ("set" if value else "not set") if one.name == "token" else value
