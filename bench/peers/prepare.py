"""Writes what the engines start from, for one model and batch:

    PYTHON prepare.py MODEL BATCH FOLDER [SITE-PACKAGES-WITH-ONNXSCRIPT]

`program.pt2` and `model.onnx` hold weights `a`; `a.safetensors` and `b.safetensors` are two sets of weights;
`inputs.npz`, `expected_a.npz` and `expected_b.npz` are the inputs and PyTorch's answers in f32.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from networks import NETWORKS, Inputs
from safetensors.torch import save_file
from torch import nn
from torch.export import ExportedProgram

SEEDS = {"a": 0, "b": 2}


def main() -> None:
    name, batch, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    # The exporter to ONNX needs onnxscript, which this environment has not. Nothing else is taken from there:
    # it comes last.
    sys.path += sys.argv[4:]
    warnings.simplefilter("ignore")
    network = NETWORKS[name]
    inputs = network.inputs(batch)
    np.savez(folder / "inputs.npz", **{f"x{index}": value.numpy() for index, value in enumerate(inputs)})
    for which, seed in SEEDS.items():
        torch.manual_seed(seed)
        model = network.build(seed).eval()
        with torch.no_grad():
            save_weights(model, folder / f"{which}.safetensors")
            save_answers(model, inputs, folder / f"expected_{which}.npz")
            if which == "a":
                facts = {"onnx": save_programs(model, inputs, folder)}
                facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    (folder / "facts.json").write_text(json.dumps(facts))


def save_weights(model: nn.Module, path: Path) -> None:
    save_file({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}, path)


def save_answers(model: nn.Module, inputs: Inputs, path: Path) -> None:
    found = model(*inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    np.savez(path, **{str(index): value.numpy() for index, value in enumerate(outputs)})


def save_programs(model: nn.Module, inputs: Inputs, folder: Path) -> str:
    """Which exporter wrote the ONNX model."""
    program = torch.export.export(model, inputs, strict=False)
    torch.export.save(program, folder / "program.pt2")
    return save_onnx(model, program, inputs, folder / "model.onnx")


def save_onnx(model: nn.Module, program: ExportedProgram, inputs: Inputs, path: Path) -> str:
    names = [f"x{index}" for index in range(len(inputs))]
    try:
        torch.onnx.export(program, f=str(path), input_names=names, dynamo=True, verbose=False)
        return "dynamo"
    except Exception as error:
        print(f"the exporter of programs: {type(error).__name__}: {error}", file=sys.stderr)
    torch.onnx.export(model, inputs, str(path), input_names=names, dynamo=False, opset_version=18)
    return "TorchScript"


if __name__ == "__main__":
    main()
