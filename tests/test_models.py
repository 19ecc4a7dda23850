"""Every model of the zoo: right answers, and law 1 (a refit equals a build with the new weights)."""

from __future__ import annotations

import pytest

from comparing import assert_close, assert_same, same
from conftest import Cli
from exporting import exported
from models import ZOO

FORMS = [
    pytest.param(name, decomposed, id=f"{name}-{'decomposed' if decomposed else 'exported'}")
    for name, entry in ZOO.items()
    for decomposed in (False, True)
    if entry.decomposes or not decomposed
]


@pytest.mark.parametrize(("name", "decomposed"), FORMS)
def test_outputs_and_law_1(cli: Cli, name: str, decomposed: bool) -> None:
    model = exported(name)
    # Shapes are lowered the same way in both forms: two sets are enough for the second one.
    input_sets = model.input_sets[:2] if decomposed else model.input_sets

    engine = cli.compile(model.archive(cli.path(name, ".pt2"), "a", decomposed=decomposed))
    kernels = cli.inspect(engine, "--kernels")["kernels"]
    assert not [kernel["op"] for kernel in kernels if kernel["kernel"] == "reference"], (
        "the evaluator runs it"
    )
    with_a = cli.run_all(engine, input_sets)
    for actual, expected in zip(with_a, model.expected("a"), strict=False):
        assert_close(actual, expected)

    refitted, report = cli.refit(engine, model.weights_file("b"))
    assert report["applied"]
    with_b = cli.run_all(refitted, input_sets)
    for actual, expected in zip(with_b, model.expected("b"), strict=False):
        assert_close(actual, expected)
    assert not same(with_a[0], with_b[0]), "the weights of this test make no difference"

    built = cli.compile(model.archive(cli.path(name, ".pt2"), "b", decomposed=decomposed))
    for from_refit, from_build in zip(with_b, cli.run_all(built, input_sets), strict=True):
        assert_same(from_refit, from_build)
