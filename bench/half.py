"""Whole models in bfloat16 and float16: ours, our float32, and PyTorch's in the same dtype, interleaved.

With the environment of scripts/python-env.sh:

    make python
    PYTHONPATH=target/python PYTHON bench/half.py --threads 1 --state half.json

What has been measured is kept in the state file, so that a run that was stopped goes on. ResNet-50, BERT-base
with 128 tokens, ViT-B/16 and the diffusion UNet with half the channels; int8 on BERT-base and a single-token
step of GPT-2 in int4. PyTorch is the better of eager (under autocast) and inductor. Errors are norms of
differences from float32, next to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regraft

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from networks import NETWORKS, Prefill, gpt2

Model = tuple[nn.Module, tuple[Tensor, ...]]
SECONDS = 0.4


def network(name: str) -> Model:
    return NETWORKS[name].build(0), NETWORKS[name].inputs(1)


def gpt2_step() -> Model:
    """One token, without a cache."""
    return Prefill(gpt2(0)), (torch.randint(0, 50000, (1, 1)),)


MODELS: dict[str, Callable[[], Model]] = {
    "resnet50": lambda: network("resnet50"),
    "bert": lambda: network("bert_base_128"),
    "vit": lambda: network("vit_b_16"),
    "unet": lambda: network("unet_half"),
    "gpt2": gpt2_step,
}
# What is measured of each: settings of regraft.compile beside float32, by name.
FORMS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": torch.bfloat16},
    "f16": {"dtype": torch.float16},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
}
WANTED = {name: ["bf16", "f16"] for name in MODELS} | {
    "bert": ["bf16", "f16", "int8"],
    "gpt2": ["bf16", "int8", "int4"],
}


def timed(run: Callable[[], Any], seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        run()
        count += 1
    return (time.perf_counter() - start) / count * 1e3


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def measure(name: str, form: str, options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    settings = {"threads": options.threads}
    ours = regraft.compile(model, inputs, **settings)
    narrow = regraft.compile(model, inputs, **settings, **FORMS[form])
    dtype = FORMS[form].get("dtype")

    def eager() -> Any:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return model(*inputs)

    sides: dict[str, Callable[[], Any]] = {
        "f32": lambda: ours(*inputs),
        form: lambda: narrow(*inputs),
        "eager": eager,
    }
    if dtype is not None and not options.no_inductor:
        fast = torch.compile(model)

        def inductor() -> Any:
            with torch.autocast("cpu", dtype=dtype):
                return fast(*inputs)

        try:
            inductor()
            sides["inductor"] = inductor
        except Exception as error:  # it needs a C++ compiler
            print(f"{name} {form}: inductor: {str(error).splitlines()[0]}", file=sys.stderr)
    for side in sides.values():
        timed(side, 0)
    rounds = [{side: timed(run, SECONDS) for side, run in sides.items()} for _ in range(options.rounds)]
    found = {side: statistics.median(times[side] for times in rounds) for side in sides}
    wanted = model(*inputs)
    found["error"] = distance(narrow(*inputs), wanted)
    found["eager_error"] = distance(eager(), wanted)
    return found


def line(name: str, form: str, found: dict[str, float]) -> str:
    best = min(found[side] for side in ("eager", "inductor") if side in found)
    return (
        f"| {name} | {form} | {found['f32']:.2f} | {found[form]:.2f} | {found['f32'] / found[form]:.2f} "
        f"| {best:.2f} | {best / found[form]:.2f} | {found['error']:.1e} | {found['eager_error']:.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="models or forms, by commas")
    parser.add_argument("--no-inductor", action="store_true")
    parser.add_argument("--state", type=Path, help="where figures are kept, to go on from")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    state = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}
    only = [part for part in options.only.split(",") if part]
    print(
        "| model | form | our f32, ms | ours, ms | gain | PyTorch, ms | PyTorch / ours | error | PyTorch's |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with torch.no_grad():
        for name, form in ((name, form) for name, forms in WANTED.items() for form in forms):
            key = f"{name} {form} {options.threads}"
            if only and name not in only and form not in only:
                continue
            if key not in state:
                state[key] = measure(name, form, options)
                if options.state:
                    options.state.write_text(json.dumps(state, indent=1))
            print(line(name, form, state[key]), flush=True)


if __name__ == "__main__":
    main()
