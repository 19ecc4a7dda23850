"""Writes the node cases of the `onnx` package, each a model of one operator with its answers.

    PYTHON tests/onnx_cases/export.py FOLDER [--opset 24] [--ops Conv,Gemm]

Each gives `FOLDER/OPERATOR/case-NAME.onnx` and, where its tensors are of dtypes that are stored, a
`.safetensors` beside it with `input.N` and `expected.N`. Cases of later opsets are left out; what the
importer does not take it must refuse.
"""

import argparse
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx.backend.test.case import node as node_cases
from safetensors.torch import save_file

STORED = "bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 bool".split()


def stored(array: object) -> torch.Tensor | None:
    """The tensor, if it is one of a dtype that both sides have."""
    if not isinstance(array, np.ndarray | np.generic):
        return None
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy()) if array.dtype.name in STORED else None


def answers(case) -> dict[str, torch.Tensor] | None:
    """The tensors of the first data set, unless some cannot be stored."""
    given, expected = case.data_sets[0]
    tensors = {f"input.{i}": stored(t) for i, t in enumerate(given)}
    tensors |= {f"expected.{i}": stored(t) for i, t in enumerate(expected)}
    return None if any(t is None for t in tensors.values()) else tensors


def operator_of(case, bases: dict[str, str]) -> str:
    """The operator that a case is about; of one that is expanded into others, that of the case before."""
    name = case.name.split("_expanded")[0]
    return bases.get(name, case.model.graph.node[0].op_type)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--opset", type=int, default=24, help="the last one (default: %(default)s)")
    parser.add_argument("--ops", help="names of operators; default: all")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    cases = node_cases.collect_testcases(None)
    bases = {c.name: c.model.graph.node[0].op_type for c in cases if "_expanded" not in c.name}
    wanted = args.ops.split(",") if args.ops else None
    for case in cases:
        domains = {o.domain: o.version for o in case.model.opset_import}
        if set(domains) - {"", "ai.onnx"} or max(domains.values()) > args.opset:
            continue
        operator = operator_of(case, bases)
        if wanted is not None and operator not in wanted:
            continue
        stem = args.folder / operator / f"case-{case.name}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(case.model, stem.with_suffix(".onnx"))
        tensors = answers(case)
        if tensors is not None:
            save_file(tensors, stem.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
