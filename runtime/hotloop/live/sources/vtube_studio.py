"""VTube Studio's plugin API (github.com/DenchiSoft/VTubeStudio), from the side of the application.

A request in JSON gives a response in JSON: no socket and no clock here. `Studio` is what all plugins share: tokens,
parameters and who writes them, expressions; `Plugin` is one connection. One plugin may set a parameter, any number may
add to it; one that is not sent for a second is free again. Error numbers are those of the API's `ErrorID`.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from ...errors import HotloopError
from ..bus import Bus
from ..controls import EXPRESSIONS
from .vtube_parameters import PARAMETERS, Parameter, changed, moved

__all__ = ["API", "PORT", "ErrorID", "Plugin", "Studio"]

PORT = 8001
API, VERSION = "VTubeStudioPublicAPI", "1.0"
LOST = 1.0  # seconds
LARGEST = 262144  # characters of a request
_OURS = "vts:expressions"  # the source that shows what plugins switched on
_FILE = ".exp3.json"
_MOST = 1e6
_MOST_TOKENS, _MOST_CUSTOM, _MOST_OF_ONE = 64, 300, 100


class ErrorID(IntEnum):
    InternalServerError = 0
    JSONInvalid = 2
    APINameInvalid = 3
    APIVersionInvalid = 4
    RequestIDInvalid = 5
    RequestTypeMissingOrEmpty = 6
    RequestTypeUnknown = 7
    RequestRequiresAuthetication = 8  # so spelled there
    TokenRequestDenied = 50
    TokenRequestPluginNameInvalid = 52
    TokenRequestDeveloperNameInvalid = 53
    AuthenticationTokenMissing = 100
    AuthenticationPluginNameMissing = 101
    AuthenticationPluginDeveloperMissing = 102
    ModelIDNotFound = 152
    HotkeyIDNotFoundInModel = 202
    HotkeyExecutionFailedBecauseLive2DItemNotFound = 207
    CustomParamNameInvalid = 350
    CustomParamValuesInvalid = 351
    CustomParamAlreadyCreatedByOtherPlugin = 352
    CustomParamExplanationTooLong = 353
    CustomParamDefaultParamNameNotAllowed = 354
    CustomParamLimitPerPluginExceeded = 355
    CustomParamLimitTotalExceeded = 356
    CustomParamDeletionNameInvalid = 400
    CustomParamDeletionNotFound = 401
    CustomParamDeletionCreatedByOtherPlugin = 402
    CustomParamDeletionCannotDeleteDefaultParam = 403
    InjectDataNoDataProvided = 450
    InjectDataValueInvalid = 451
    InjectDataWeightInvalid = 452
    InjectDataParamNameNotFound = 453
    InjectDataParamControlledByOtherPlugin = 454
    InjectDataModeUnknown = 455
    ParameterValueRequestParameterNotFound = 500
    ExpressionStateRequestInvalidFilename = 600
    ExpressionStateRequestFileNotFound = 601
    ExpressionActivationRequestInvalidFilename = 650
    ExpressionActivationRequestFileNotFound = 651


class _Refused(HotloopError):
    def __init__(self, error: ErrorID, rule: str, got: object = "") -> None:
        super().__init__("vtube studio", rule, got)
        self.error = error


@dataclass
class Studio:
    """What all plugins share.

    bus      gets what they write from the source `vts:<plugin>`, expressions from `vts:expressions`
    allow    whether a plugin (its name, its developer) may have a token
    play     what a hotkey of a motion calls with its name
    motions  names of motions, each a hotkey as every expression is
    tokens   given out before: token -> (plugin, developer); the caller keeps them
    """

    bus: Bus
    allow: Callable[[str, str], bool]
    play: Callable[[str], object] = lambda name: None
    motions: Sequence[str] = ()
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)
    make_token: Callable[[], str] = lambda: secrets.token_hex(16)
    model: str = "hotloop"

    def __post_init__(self) -> None:
        self.custom: dict[str, Parameter] = {}
        self.active: set[str] = set()
        self.face_found = False
        self._set: dict[str, tuple[str, float, float]] = {}  # parameter -> plugin, when, value
        self._added: dict[tuple[str, str], tuple[float, float]] = {}  # parameter, plugin -> when, value

    def parameter(self, name: object) -> Parameter | None:
        return (PARAMETERS.get(name) or self.custom.get(name)) if isinstance(name, str) else None

    def value(self, parameter: Parameter, t: float) -> float:
        """What plugins write to a parameter at t seconds; its default where none does."""
        _, when, value = self._set.get(parameter.name, ("", -math.inf, 0.0))
        held = value if t - when <= LOST else parameter.default
        return held + sum(
            value for (name, _), (when, value) in self._added.items() if name == parameter.name and t - when <= LOST
        )

    def write(self, plugin: str, t: float, mode: str, values: dict[str, float], weights: dict[str, float]) -> None:
        """All or nothing: raises before anything is written."""
        if mode == "set":
            for name in values:
                holder, when, _ = self._set.get(name, (plugin, t, 0.0))
                if holder != plugin and t - when <= LOST:
                    error = ErrorID.InjectDataParamControlledByOtherPlugin
                    raise _Refused(error, f"{name} is set by another plugin", holder)
            self._set |= {name: (plugin, t, value) for name, value in values.items()}
            shares = {c: weights[name] for name in weights if (p := self.parameter(name)) for c, _, _ in p.moves}
            self.bus.put(f"vts:{plugin}", t, moved(values), weights=shares)
        else:
            self._added = {key: one for key, one in self._added.items() if t - one[0] <= LOST}
            self._added |= {(name, plugin): (t, value) for name, value in values.items()}
            self.bus.put(f"vts:{plugin}", t, changed(values), mode="add")

    def express(self, name: str, active: bool, t: float) -> None:
        (self.active.add if active else self.active.discard)(name)
        if self.active:
            self.bus.join(_OURS, smooth=False, timeout=math.inf)
            self.bus.put(_OURS, t, {other: float(other in self.active) for other in EXPRESSIONS})
        else:
            self.bus.release(_OURS)

    def hotkeys(self) -> list[dict[str, Any]]:
        def row(kind: str, name: str, file: str) -> dict[str, Any]:
            told = {"name": name, "type": kind, "description": f"{kind} {name}", "file": file}
            return told | {"hotkeyID": f"{kind}-{name}", "keyCombination": [], "onScreenButtonID": -1}

        return [
            *(row("ToggleExpression", name, name + _FILE) for name in EXPRESSIONS),
            *(row("TriggerAnimation", name, f"{name}.motion3.json") for name in self.motions),
        ]


class Plugin:
    """One connection."""

    def __init__(self, studio: Studio) -> None:
        self._studio, self._name = studio, ""

    @property
    def authenticated(self) -> bool:
        return bool(self._name)

    def reply(self, request: str | bytes, t: float, unix_ms: int) -> str:
        """The response to one request, at t seconds of the bus's clock. Whatever comes, nothing is raised."""
        told: dict[str, Any] = {"apiName": API, "apiVersion": VERSION, "timestamp": unix_ms}
        told |= {"messageType": "APIError", "requestID": self._studio.make_token()}
        try:
            kind, data, request_id = _opened(request)
            told["requestID"] = request_id or told["requestID"]
            if not kind:
                raise _Refused(ErrorID.RequestTypeMissingOrEmpty, "a request has a messageType", kind)
            answer = getattr(self, f"_{kind}", None) if kind in _REQUESTS else None
            if answer is None:
                raise _Refused(ErrorID.RequestTypeUnknown, f"requests are {', '.join(_REQUESTS)}", kind)
            if not self.authenticated and kind not in _OPEN:
                raise _Refused(ErrorID.RequestRequiresAuthetication, "this request comes after authentication", kind)
            told |= {"data": answer(data, t), "messageType": kind.removesuffix("Request") + "Response"}
        except HotloopError as e:  # also of what `play` calls
            error = e.error if isinstance(e, _Refused) else ErrorID.InternalServerError
            told["data"] = {"errorID": int(error), "message": str(e)}
        return json.dumps(told)

    def _APIStateRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        return {"active": True, "vTubeStudioVersion": "1.32.0", "currentSessionAuthenticated": self.authenticated}

    def _AuthenticationTokenRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        studio, who = self._studio, []
        for name, error in (
            ("pluginName", ErrorID.TokenRequestPluginNameInvalid),
            ("pluginDeveloper", ErrorID.TokenRequestDeveloperNameInvalid),
        ):
            if not isinstance(value := data.get(name), str) or not 3 <= len(value) <= 32:
                raise _Refused(error, f"{name} must be text of 3 to 32 characters", value)
            who.append(value)
        if len(studio.tokens) >= _MOST_TOKENS or not studio.allow(who[0], who[1]):
            raise _Refused(ErrorID.TokenRequestDenied, "this plugin was not allowed", who[0])
        token = studio.make_token()
        studio.tokens[token] = (who[0], who[1])
        return {"authenticationToken": token}

    def _AuthenticationRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        told = []
        for name, error in (
            ("authenticationToken", ErrorID.AuthenticationTokenMissing),
            ("pluginName", ErrorID.AuthenticationPluginNameMissing),
            ("pluginDeveloper", ErrorID.AuthenticationPluginDeveloperMissing),
        ):
            if not isinstance(value := data.get(name), str) or not value:
                raise _Refused(error, f"{name} must be given", value)
            told.append(value)
        token, *who = told
        given = token.encode("utf-8", "surrogatepass")  # JSON may hold half a character
        matches = [other for other in self._studio.tokens if secrets.compare_digest(other.encode(), given)]
        valid = bool(matches) and self._studio.tokens[matches[0]] == tuple(who)
        self._name = f"{who[0]}/{who[1]}" if valid else ""
        return {"authenticated": valid, "reason": "Token valid." if valid else "Token invalid or of another plugin."}

    def _InputParameterListRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        custom = [self._row(parameter, t) for parameter in self._studio.custom.values()]
        return self._model() | {
            "customParameters": custom, "defaultParameters": [self._row(one, t) for one in PARAMETERS.values()],
        }  # fmt: skip

    def _ParameterValueRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        if (parameter := self._studio.parameter(data.get("name"))) is None:
            error = ErrorID.ParameterValueRequestParameterNotFound
            raise _Refused(error, "there is no parameter of this name", data.get("name"))
        return self._row(parameter, t)

    def _ParameterCreationRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        custom, name = self._studio.custom, data.get("parameterName")
        if not isinstance(name, str) or not (4 <= len(name) <= 32 and name.isascii() and name.isalnum()):
            raise _Refused(ErrorID.CustomParamNameInvalid, "names are 4 to 32 letters and digits", name)
        if name in PARAMETERS:
            raise _Refused(ErrorID.CustomParamDefaultParamNameNotAllowed, "this name is a default parameter's", name)
        if name in custom and custom[name].owner != self._name:
            raise _Refused(ErrorID.CustomParamAlreadyCreatedByOtherPlugin, "another plugin made it", name)
        explanation = data.get("explanation", "")
        if not isinstance(explanation, str) or len(explanation) >= 256:
            raise _Refused(ErrorID.CustomParamExplanationTooLong, "explanations are under 256 characters", explanation)
        numbers = [_number(data.get(key)) for key in ("min", "max", "defaultValue")]
        if None in numbers:
            raise _Refused(ErrorID.CustomParamValuesInvalid, "min, max and defaultValue are numbers within 1e6", data)
        if name not in custom:
            if len(custom) >= _MOST_CUSTOM:
                raise _Refused(ErrorID.CustomParamLimitTotalExceeded, f"at most {_MOST_CUSTOM} in all", len(custom))
            if sum(one.owner == self._name for one in custom.values()) >= _MOST_OF_ONE:
                error = ErrorID.CustomParamLimitPerPluginExceeded
                raise _Refused(error, f"at most {_MOST_OF_ONE} of one plugin", name)
        low, high, default = (number or 0.0 for number in numbers)
        custom[name] = Parameter(name, low, high, default, owner=self._name)
        return {"parameterName": name}

    def _ParameterDeletionRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        custom, name = self._studio.custom, data.get("parameterName")
        if not isinstance(name, str):
            raise _Refused(ErrorID.CustomParamDeletionNameInvalid, "parameterName must be text", name)
        if name in PARAMETERS:
            raise _Refused(ErrorID.CustomParamDeletionCannotDeleteDefaultParam, "default parameters stay", name)
        if name not in custom:
            raise _Refused(ErrorID.CustomParamDeletionNotFound, "there is no parameter of this name", name)
        if custom[name].owner != self._name:
            raise _Refused(ErrorID.CustomParamDeletionCreatedByOtherPlugin, "another plugin made it", name)
        del custom[name]
        return {"parameterName": name}

    def _InjectParameterDataRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        rows, mode = data.get("parameterValues"), data.get("mode", "set")
        if not isinstance(rows, list) or not rows:
            raise _Refused(ErrorID.InjectDataNoDataProvided, "parameterValues must be a list with values", rows)
        if mode not in ("set", "add"):
            raise _Refused(ErrorID.InjectDataModeUnknown, "mode is set or add", mode)
        values: dict[str, float] = {}
        weights: dict[str, float] = {}
        for row in rows:
            name = row.get("id") if isinstance(row, dict) else None
            if not isinstance(name, str) or self._studio.parameter(name) is None:
                raise _Refused(ErrorID.InjectDataParamNameNotFound, "there is no parameter of this name", name)
            if (value := _number(row.get("value"))) is None:
                raise _Refused(ErrorID.InjectDataValueInvalid, f"{name} must be a number within 1e6", row.get("value"))
            weight = _number(row.get("weight") if row.get("weight") is not None else 1.0)
            if weight is None or not 0 <= weight <= 1:
                raise _Refused(ErrorID.InjectDataWeightInvalid, "weights are in 0..1", row.get("weight"))
            values[name], weights[name] = value, weight
        self._studio.write(self._name, t, mode, values, weights)
        self._studio.face_found = data.get("faceFound") is True
        return {}

    def _HotkeysInCurrentModelRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        if data.get("modelID") not in (None, "", self._studio.model):
            raise _Refused(ErrorID.ModelIDNotFound, "there is no model of this ID", data.get("modelID"))
        return self._model() | {"availableHotkeys": self._studio.hotkeys()}

    def _HotkeyTriggerRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        if item := data.get("itemInstanceID"):
            error = ErrorID.HotkeyExecutionFailedBecauseLive2DItemNotFound
            raise _Refused(error, "there are no Live2D items", item)
        studio, asked = self._studio, data.get("hotkeyID")
        for row in studio.hotkeys():
            if not isinstance(asked, str):
                break
            if asked == row["hotkeyID"] or asked.lower() == row["name"].lower():
                if row["type"] == "ToggleExpression":
                    studio.express(row["name"], row["name"] not in studio.active, t)
                else:
                    studio.play(row["name"])
                return {"hotkeyID": row["hotkeyID"]}
        raise _Refused(ErrorID.HotkeyIDNotFoundInModel, "there is no hotkey of this ID or name", asked)

    def _ExpressionStateRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        asked, rows = data.get("expressionFile") or "", []
        if asked:
            asked = _expression(
                asked,
                ErrorID.ExpressionStateRequestInvalidFilename,
                ErrorID.ExpressionStateRequestFileNotFound,
            )
        for name in EXPRESSIONS:
            if asked in ("", name):
                keys = [{"name": name, "id": f"ToggleExpression-{name}"}] if data.get("details") is True else []
                rows.append({
                    "name": name, "file": name + _FILE, "active": name in self._studio.active, "usedInHotkeys": keys,
                    "deactivateWhenKeyIsLetGo": False, "autoDeactivateAfterSeconds": False, "secondsRemaining": 0,
                    "parameters": [],
                })  # fmt: skip
        return self._model() | {"expressions": rows}

    def _ExpressionActivationRequest(self, data: Mapping[str, Any], t: float) -> dict[str, Any]:
        """fadeTime is not taken: the bus eases expressions."""
        name = _expression(
            data.get("expressionFile"),
            ErrorID.ExpressionActivationRequestInvalidFilename,
            ErrorID.ExpressionActivationRequestFileNotFound,
        )
        self._studio.express(name, data.get("active") is True, t)
        return {}

    def _model(self) -> dict[str, Any]:
        return {"modelLoaded": True, "modelName": self._studio.model, "modelID": self._studio.model}

    def _row(self, one: Parameter, t: float) -> dict[str, Any]:
        told = {"name": one.name, "addedBy": one.owner, "value": self._studio.value(one, t)}
        return told | {"min": one.low, "max": one.high, "defaultValue": one.default}


_OPEN = ("APIStateRequest", "AuthenticationTokenRequest", "AuthenticationRequest")
_REQUESTS = tuple(name[1:] for name in vars(Plugin) if name.endswith("Request"))


def _opened(request: str | bytes) -> tuple[str, dict[str, Any], str]:
    """Type, data and ID ("" if it has none) of a request."""
    try:
        told = json.loads(request) if len(request) <= LARGEST else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise _Refused(ErrorID.JSONInvalid, f"a request is a JSON object of at most {LARGEST} characters", request[:40])
    if told.get("apiName") != API:
        raise _Refused(ErrorID.APINameInvalid, f"apiName must be {API}", told.get("apiName"))
    if told.get("apiVersion") != VERSION:
        raise _Refused(ErrorID.APIVersionInvalid, f"apiVersion must be {VERSION}", told.get("apiVersion"))
    request_id = told.get("requestID")
    if request_id is not None and not (
        isinstance(request_id, str) and 1 <= len(request_id) <= 64 and request_id.isascii()
    ):
        raise _Refused(ErrorID.RequestIDInvalid, "requestID must be 1 to 64 ASCII characters", request_id)
    kind, data = told.get("messageType"), told.get("data")
    return kind if isinstance(kind, str) else "", data if isinstance(data, dict) else {}, request_id or ""


def _number(value: object) -> float | None:
    """A number within 1e6; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_MOST <= value <= _MOST:
        return None
    return float(value)


def _expression(file: object, invalid: ErrorID, missing: ErrorID) -> str:
    if not isinstance(file, str) or not file.endswith(_FILE):
        raise _Refused(invalid, f"expression files end in {_FILE}", file)
    if (name := file.removesuffix(_FILE)) not in EXPRESSIONS:
        raise _Refused(missing, f"expressions are {', '.join(EXPRESSIONS)}", file)
    return name
