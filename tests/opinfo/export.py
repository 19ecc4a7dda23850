"""Exports samples of PyTorch's operator database as programs with PyTorch's answers.

    PYTHON tests/opinfo/export.py FOLDER [--samples 4] [--dtypes f32,i64] [--ops add,sort]

Each sample gives `FOLDER/OPERATOR/DTYPE-N.pt2`, the operator called on the sample's tensors as it is
exported, and a `.safetensors` beside it with `input.N`, `expected.N`, and `after.N`, what is in the inputs
afterwards; for halves `wide.N` and `wide_after.N`: the same in a wider type, rounded. An operator whose
folder has the file `done` is not exported again, so the script goes on where it was stopped. `done` lists
what PyTorch itself does not export, with its reason.
`cargo run -p regraft-conformance --example opinfo -- FOLDER` imports and runs them.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import types
import unittest
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils import _pytree as pytree

# PyTorch's test tools ask for this package, whose only use is in its own tests.
sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=unittest.TestCase))
from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "bool": torch.bool,
}
SECONDS = 30  # the longest that one export may take
DRAWN = 40  # samples that are made; those exported are spread over them

# What they lose in f32 grows with each of many steps.
LOSSY = ("matrix_exp",)

# Their values are whatever was in memory.
UNINITIALIZED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted")


def as_real(leaf):
    """Complex results as pairs: programs do not give complex numbers."""
    if isinstance(leaf, torch.Tensor) and leaf.is_complex():
        return torch.view_as_real(leaf.resolve_conj())
    return leaf


class Call(torch.nn.Module):
    """An operator on a sample's tensors; what else the sample has is part of the program."""

    def __init__(self, op, tree) -> None:
        super().__init__()
        leaves, self.structure = pytree.tree_flatten(tree)
        self.op = op
        self.leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self.tensors = [leaves[i].detach().contiguous().clone() for i in self.places]

    def forward(self, *tensors):
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        given, args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return pytree.tree_map(as_real, self.op(given, *args, **kwargs))

    def inputs(self) -> tuple[torch.Tensor, ...]:
        return tuple(t.clone() for t in self.tensors)


def spread(op, dtype: torch.dtype, count: int) -> Iterator[tuple[int, object]]:
    """Some of the first samples, evenly spaced, with their numbers."""
    torch.manual_seed(zlib.crc32(f"{name_of(op)} {dtype}".encode()))
    drawn = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), DRAWN))
    step = max(len(drawn) / count, 1)
    for i in sorted({int(k * step) for k in range(count) if int(k * step) < len(drawn)}):
        yield i, drawn[i]


def name_of(op) -> str:
    return op.name.replace(".", "_") + (f"-{op.variant_test_name}" if op.variant_test_name else "")


def dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def storable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().clone()


def export(op, sample, stem: Path) -> str | None:
    """Writes one sample; the reason if PyTorch does not export it."""
    call = Call(op.op, (sample.input, sample.args, sample.kwargs)).eval()
    if not all(dense(t) for t in call.tensors):
        return "a sparse or nested input"
    with torch.no_grad():
        inputs = call.inputs()
        answers = [t for t in pytree.tree_leaves(call(*inputs)) if isinstance(t, torch.Tensor)]
        if not answers or not all(dense(t) for t in answers):
            return "no dense result"
        program = torch.export.export(call, call.inputs(), strict=False)
    torch.export.save(program, stem.with_suffix(".pt2"))
    wide = wider(op, call, answers, inputs)
    data = {f"input.{i}": storable(t) for i, t in enumerate(call.tensors)}
    data |= {f"expected.{i}": storable(t) for i, t in enumerate(answers)}
    data |= {f"after.{i}": storable(t) for i, t in enumerate(inputs)}
    data |= {f"wide.{i}": t for i, t in enumerate(wide[: len(answers)])}
    data |= {f"wide_after.{i}": t for i, t in enumerate(wide[len(answers) :])}
    save_file(data, stem.with_suffix(".safetensors"))
    return None


def wider(op, call: Call, answers: list[torch.Tensor], after: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """What it gives for half-precision inputs in f32 and leaves in them, rounded: some kernels of halves lose
    more. For operators that lose more in f32, too, the same in f64.
    """
    widths = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
    if op.name in LOSSY:
        widths[torch.float32] = torch.float64
    if not any(t.dtype in widths for t in answers):
        return []
    inputs = [t.to(widths.get(t.dtype, t.dtype)) for t in call.inputs()]
    try:
        results = [t for t in pytree.tree_leaves(call(*inputs)) if isinstance(t, torch.Tensor)]
        results += inputs
    except Exception:  # other operators for other dtypes are not an answer
        return []
    wanted = [*answers, *after]
    if [t.shape for t in results] != [t.shape for t in wanted]:
        return []
    return [storable(t.to(a.dtype)) for t, a in zip(results, wanted, strict=True)]


def timed_out(*_) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def export_operator(op, folder: Path, dtypes: list[str], count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    skipped = []
    for dtype in dtypes:
        if not op.supports_dtype(DTYPES[dtype], "cpu"):
            continue
        try:
            samples = list(spread(op, DTYPES[dtype], count))
        except Exception as error:  # the database's own failures are none of ours
            skipped.append(f"{dtype}: no samples: {error}")
            continue
        for i, sample in samples:
            stem = folder / f"{dtype}-{i}"
            signal.alarm(SECONDS)
            try:
                reason = export(op, sample, stem)
            except Exception as error:  # as above
                first = (str(error).strip().splitlines() or [""])[0]
                reason = f"{type(error).__name__}: {first}"
            finally:
                signal.alarm(0)
            if reason is not None:
                stem.with_suffix(".pt2").unlink(missing_ok=True)
                skipped.append(f"{dtype}-{i}: {reason}")
    (folder / "done").write_text("".join(f"{line}\n" for line in skipped))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--samples", type=int, default=4, help="samples of each operator and dtype (default: 4)"
    )
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="default: all of %(default)s")
    parser.add_argument("--ops", help="names of operators; default: all")
    parser.add_argument("--part", default="0/1", help="I/N: operators I, I + N, ... alone")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGALRM, timed_out)
    torch.set_num_threads(1)
    first, parts = map(int, args.part.split("/"))
    wanted = args.ops.split(",") if args.ops else None
    chosen = [
        op for op in op_db if op.name not in UNINITIALIZED and (wanted is None or name_of(op) in wanted)
    ]
    for op in chosen[first::parts]:
        folder = args.folder / name_of(op)
        if not (folder / "done").exists():
            export_operator(op, folder, args.dtypes.split(","), args.samples)


if __name__ == "__main__":
    main()
