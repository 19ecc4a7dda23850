"""Writes the node cases of the `onnx` package, each a model of one operator with its answers.

    PYTHON tests/onnx_cases/export.py FOLDER [--opset 24] [--ops Conv,Gemm]

The cases give shapes, axes and the like as inputs of the model, where models have constants. Here they
are initializers, as models have them. A sequence that a case gives is made of inputs, one for each tensor,
by a node; one that it answers with counts as its tensors.

Each gives `FOLDER/OPERATOR/case-NAME.onnx` and, where its tensors are of dtypes that are stored, a
`.safetensors` beside it with `input.N` and `expected.N`. Cases of opsets before 7 and of later ones than
the last are left out, and those of other domains; what the importer does not take it must refuse.
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

# Operands that say something about the program, by operator.
CONSTANT = {
    "AffineGrid": [1], "BlackmanWindow": [0], "CenterCropPad": [1], "Col2Im": [1, 2], "Compress": [1],
    "ConstantOfShape": [0],
    "CumProd": [1], "CumSum": [1], "DFT": [1, 2], "Dropout": [1, 2], "Expand": [1], "HammingWindow": [0],
    "HannWindow": [0], "If": [0], "Loop": [0, 1], "MaxUnpool": [2], "MelWeightMatrix": [0, 1, 2, 3, 4],
    "OneHot": [1], "Pad": [1, 3], "Range": [0, 1, 2],
    "Reshape": [1], "Resize": [1, 2, 3], "Slice": [1, 2, 3, 4], "STFT": [1, 3], "Split": [1],
    "SplitToSequence": [1],
    "Squeeze": [1], "Tile": [1], "TopK": [1], "Trilu": [1], "Unsqueeze": [1], "Upsample": [1],
    "SequenceAt": [1], "SequenceErase": [1], "SequenceInsert": [2],
    "ReduceL1": [1], "ReduceL2": [1], "ReduceLogSum": [1], "ReduceLogSumExp": [1], "ReduceMax": [1],
    "ReduceMean": [1], "ReduceMin": [1], "ReduceProd": [1], "ReduceSum": [1], "ReduceSumSquare": [1],
}  # fmt: skip

STORED = ["bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
          "uint32", "uint64", "bool"]  # fmt: skip


def stored(array: object) -> torch.Tensor | None:
    """The tensor, if it is one of a dtype that both sides have."""
    if not isinstance(array, np.ndarray | np.generic):
        return None
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy()) if array.dtype.name in STORED else None


def made(info: onnx.ValueInfoProto, value: object, model: onnx.ModelProto) -> list[object]:
    """Adds what makes a sequence, or an optional value, of tensors; these are given in its place."""
    given = value if isinstance(value, list) else [] if value is None else [value]
    names = [f"{info.name}.{i}" for i in range(len(given))]
    for name, array in zip(names, given, strict=True):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, array.shape))
    kind, nodes = info.type, []
    optional = kind.HasField("optional_type")
    inner = kind.optional_type.elem_type if optional else kind
    part = f"{info.name}.element" if optional else info.name
    if value is not None and inner.HasField("sequence_type"):
        dtype = inner.sequence_type.elem_type.tensor_type.elem_type
        attributes = {} if names else {"dtype": dtype}
        nodes.append(
            onnx.helper.make_node(
                "SequenceConstruct" if names else "SequenceEmpty", names, [part], **attributes
            )
        )
        names = [part]
    if optional:
        attributes = {} if names else {"type": inner}
        nodes.append(onnx.helper.make_node("Optional", names, [info.name], **attributes))
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return given


def fixed(case, base) -> tuple[onnx.ModelProto, list[object]]:
    """The model with its constant operands as initializers, and what is given still."""
    node = base.model.graph.node[0]
    names = {node.input[i] for i in CONSTANT.get(node.op_type, []) if i < len(node.input)}
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    given, inputs = [], list(model.graph.input)
    del model.graph.input[:]
    for info, array in zip(inputs, case.data_sets[0][0], strict=True):
        if info.name in names and isinstance(array, np.ndarray | np.generic):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), info.name))
        elif not info.type.HasField("tensor_type"):
            given += made(info, array, model)
        else:
            model.graph.input.append(info)
            given.append(array)
    return model, given


def answers(case, given: list[object]) -> dict[str, torch.Tensor] | None:
    """The tensors of the first data set, unless some cannot be stored."""
    expected = []
    for answer in case.data_sets[0][1]:
        expected += answer if isinstance(answer, list) else [answer]
    tensors = {f"input.{i}": stored(t) for i, t in enumerate(given)}
    tensors |= {f"expected.{i}": stored(t) for i, t in enumerate(expected)}
    return None if any(t is None for t in tensors.values()) else tensors


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
    bases = {c.name: c for c in cases if "_expanded" not in c.name}
    wanted = args.ops.split(",") if args.ops else None
    # Cases of an earlier run would count too.
    for old in args.folder.glob("*/case-*"):
        if wanted is None or old.parent.name in wanted:
            old.unlink()
    for case in cases:
        domains = {o.domain: o.version for o in case.model.opset_import}
        if set(domains) - {"", "ai.onnx"} or not 7 <= max(domains.values()) <= args.opset:
            continue
        # One that is expanded into other operators is about that of the case before.
        base = bases.get(case.name.split("_expanded")[0], case)
        operator = base.model.graph.node[0].op_type
        if wanted is not None and operator not in wanted:
            continue
        stem = args.folder / operator / f"case-{case.name}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        model, given = fixed(case, base)
        onnx.save(model, stem.with_suffix(".onnx"))
        tensors = answers(case, given)
        if tensors is not None:
            save_file(tensors, stem.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
