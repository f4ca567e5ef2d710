"""The probe as a judge that needs no torch: `python models/avatar_tiny/judge.py` writes the asset that hotloop ships.

The graph holds the probe's own float16 weights and widens them, as `load_probe` does. The prompts are the held-out ones
of `score.py`, in its order and with its seeds; the real pictures are the renders that it compares with. So figures of
as many prompts are the same there and in `hotloop compare`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from captions import full_prompt
from data import SIZE
from onnx import TensorProto, helper, numpy_helper
from probe import PATH, load_probe, predict
from render import ATTRIBUTES, render
from safetensors.numpy import load_file
from score import GOALS, clean_held_out

from hotloop.evaluation import judge
from hotloop.weights import save

__all__ = ["graph", "main", "write"]

OPSET = 17


def graph(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """`Probe` over its stored weights: image uint8 [N, 64, 64, 3] -> features [N, 128] and logits per attribute."""
    nodes: list[Any] = []
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items() if value.dtype == np.float16]
    nodes += [helper.make_node("Cast", [one.name], [f"{one.name}.wide"], to=TensorProto.FLOAT) for one in stored]

    def then(op: str, x: str, *parameters: str, **attributes: Any) -> str:
        out = f"{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, [x, *(f"{name}.wide" for name in parameters)], [out], **attributes))
        return out

    # Pixels 0..255 -> -1..1, as `to_tensor` has it.
    for name, value in (("scale", 127.5), ("one", 1.0)):
        nodes.append(helper.make_node("Constant", [], [f"{name}.wide"], value_float=value))
    x = then("Transpose", then("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = then("Sub", then("Div", x, "scale"), "one")
    for i in range(sum(name.endswith("running_mean") for name in weights)):
        at, norm = f"body.{3 * i}", f"body.{3 * i + 1}"
        stride = [1, 1] if i == 0 else [2, 2]
        x = then("Conv", x, f"{at}.weight", f"{at}.bias", strides=stride, pads=[1, 1, 1, 1])
        its = (f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
        x = then("Relu", then("BatchNormalization", x, *its, epsilon=1e-5))
    x = then("Flatten", then("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), axis=1)

    def linear(x: str, at: str, out: str) -> None:
        nodes.append(helper.make_node("Gemm", [x, f"{at}.weight.wide", f"{at}.bias.wide"], [out], transB=1))

    linear(x, "mix", "features")
    shared = then("Relu", "features")
    for name in ATTRIBUTES:
        linear(shared, f"heads.{name}", name)
    widths = {"features": len(weights["mix.bias"])} | {name: len(values) for name, values in ATTRIBUTES.items()}
    made = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name, width in widths.items()],
        stored,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="avatar_tiny")
    model.ir_version = 8  # opset 17's own, which every onnxruntime that hotloop takes can read
    onnx.checker.check_model(model, full_check=True)
    return model


def write(folder: Path, *, prompts: int) -> None:
    """The judge with this many prompts and real pictures, of faces that no training stage has seen."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph(load_file(PATH)), folder / judge.GRAPH)
    chosen = clean_held_out(2 * prompts)
    captions = [full_prompt(face, face.seed) for face in chosen[:prompts]]
    lines = ",\n".join(json.dumps({"text": one.text, "claims": one.claims}, ensure_ascii=False) for one in captions)
    (folder / judge.PROMPTS).write_text(f'{{"prompts": [\n{lines}\n]}}\n', encoding="utf-8")
    real = np.stack([render(face, SIZE).image for face in chosen[prompts:]])
    _, features = predict(load_probe(), real)
    save({"features": features}, folder / judge.REFERENCE)
    judge.seal(folder, size=(SIZE, SIZE), attributes=ATTRIBUTES, scored=tuple(GOALS["full"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path(judge.__file__).parent / "assets" / "avatar-tiny-judge")
    options = parser.parse_args()
    write(options.out, prompts=options.prompts)


if __name__ == "__main__":
    main()
