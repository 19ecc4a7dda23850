"""The examples run, and say what they are there to show."""

from __future__ import annotations

import subprocess
import sys

import pytest

from exporting import ROOT

EXPECTED = {
    "ab_variants.py": [
        "candidate: 1 weight differs, 1 slot rebuilt",
        "served: 180 by control, 20 by candidate",
        "control: as PyTorch",
        "candidate: as PyTorch",
    ],
    "fine_tuning.py": ["60 refits", "as PyTorch at each step: True"],
    "lora_hot_swap.py": ["the first and the last result are the same: True", "recompiles 0"],
    "policy_training.py": ["41 refits: ", "learned: True, as the trainer: True"],
    "stripped_distribution.py": ["server: no weights yet", "server: class"],
}


# What scripts/gpu/python.sh runs.
ON_A_GPU = {"diffusers_lora_cuda.py"}


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED) | ON_A_GPU


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str) -> None:
    done = subprocess.run(
        # All warnings are silent but that a part runs on the evaluator.
        [sys.executable, "-W", "ignore", "-W", "default:no kernel runs", str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no kernel runs" not in done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout
    assert "as PyTorch: False" not in done.stdout
    # The class that PyTorch finds is the one that the server found.
    classes = [line.rpartition(" ")[2] for line in done.stdout.splitlines() if ": class " in line]
    assert len(set(classes)) <= 1
