"""Scenarios of docs/scenarios.md by their id: R is refit of one compiled model, S is stripped engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from comparing import assert_close, assert_same
from conftest import Cli, CommandFailed
from exporting import Arrays, Exported, exported, save_arrays

WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
STRIPPED_FRACTION = 0.03


def freshly_initialised_resnet18() -> Arrays:
    """What a model is built with before it is trained: batch norms still at their defaults."""
    import torch
    import torchvision

    torch.manual_seed(7)
    state = torchvision.models.resnet18(weights=None).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def build(cli: Cli, model: Exported, weights: str | Arrays) -> Path:
    return cli.compile(model.archive(cli.path(model.name, ".pt2"), weights))


def assert_all_same(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> None:
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)


PHASES = {"match", "check", "compare", "stage", "publish", "retire"}

# ------------------------------------------------------------------------------------------ R: refit


def test_r_1_resnet18_random_to_trained(cli: Cli) -> None:
    model = exported("resnet18")
    engine = build(cli, model, freshly_initialised_resnet18())
    refitted, report = cli.refit(engine, model.weights_file("a"))
    assert report["bytes"] > 0 and set(report["phases_ms"]) == PHASES

    outputs = cli.run_all(refitted, model.input_sets)
    for actual, expected in zip(outputs, model.expected("a"), strict=True):
        assert_close(actual, expected)
    assert_all_same(outputs, cli.run_all(build(cli, model, "a"), model.input_sets))


def test_r_2_resnet18_there_and_back(cli: Cli) -> None:
    model = exported("resnet18")
    random_weights = freshly_initialised_resnet18()
    random_file = save_arrays(cli.path("random", ".safetensors"), random_weights)

    trained = build(cli, model, "a")
    at_first = cli.run_all(trained, model.input_sets)
    randomized, _ = cli.refit(trained, random_file)
    outputs = cli.run_all(randomized, model.input_sets)
    assert_all_same(outputs, cli.run_all(build(cli, model, random_weights), model.input_sets))

    restored, _ = cli.refit(randomized, model.weights_file("a"))
    assert_all_same(cli.run_all(restored, model.input_sets), at_first)


def test_r_3_bert_word_embeddings_only(cli: Cli) -> None:
    model = exported("bert_base")
    changed = model.weights("a")
    shape = changed[WORD_EMBEDDINGS].shape
    changed[WORD_EMBEDDINGS] = np.random.default_rng(3).normal(0, 0.02, shape).astype(np.float32)
    only_embeddings = save_arrays(
        cli.path("embeddings", ".safetensors"), {WORD_EMBEDDINGS: changed[WORD_EMBEDDINGS]}
    )
    complete = save_arrays(cli.path("complete", ".safetensors"), changed)

    engine = build(cli, model, "a")
    assert any(array.dtype == np.int64 for array in model.input_sets[0].values())
    expected = cli.run_all(build(cli, model, changed), model.input_sets)

    refitted, report = cli.refit(engine, only_embeddings, partial=True)
    assert_all_same(cli.run_all(refitted, model.input_sets), expected)
    assert report["applied"] == [WORD_EMBEDDINGS]
    assert_only_depends_on(report["recomputed_slots"], WORD_EMBEDDINGS)

    # A complete checkpoint with one changed tensor: the rest is found to be unchanged.
    refitted, report = cli.refit(engine, complete)
    assert_all_same(cli.run_all(refitted, model.input_sets), expected)
    assert WORD_EMBEDDINGS not in report["unchanged"]
    assert set(report["unchanged"]) == set(changed) - {WORD_EMBEDDINGS}
    assert_only_depends_on(report["recomputed_slots"], WORD_EMBEDDINGS)


def assert_only_depends_on(slots: list[dict], source: str) -> None:
    assert slots, "nothing was recomputed"
    for slot in slots:
        assert source in slot["sources"], f"{slot['name']} was recomputed for nothing"


def test_r_14_dynamic_batch_and_sequence(cli: Cli) -> None:
    import torch

    from exporting import SEEDS
    from models import build_minilm, masked_tokens

    model = exported("minilm")
    ends_and_middle = [(1, 2), (1, 512), (64, 3), (5, 17)]
    input_sets = [masked_tokens(batch, length, seed=length) for batch, length in ends_and_middle]
    arrays = [{name: tensor.numpy() for name, tensor in inputs.items()} for inputs in input_sets]

    def assert_right_for_every_shape(engine: Path, which: str) -> None:
        network = build_minilm(SEEDS[which])
        for inputs, actual in zip(input_sets, cli.run_all(engine, arrays), strict=True):
            with torch.no_grad():
                assert_close(actual, [network(**inputs).numpy()])

    engine = build(cli, model, "a")
    assert_right_for_every_shape(engine, "a")
    refitted, _ = cli.refit(engine, model.weights_file("b"))
    assert_right_for_every_shape(refitted, "b")

    too_long = {name: tensor.numpy() for name, tensor in masked_tokens(1, 513, seed=0).items()}
    with pytest.raises(CommandFailed):
        cli.run(refitted, too_long)


# ---------------------------------------------------------------------------------------- S: stripped


@pytest.mark.parametrize("name", ["resnet18", "bert_base"])
def test_s_1_stripped_is_small_and_binds(cli: Cli, name: str) -> None:
    model = exported(name)
    archive = model.archive(cli.path(name, ".pt2"), "a")
    full, stripped = cli.compile(archive), cli.compile(archive, "stripped")
    assert stripped.stat().st_size < STRIPPED_FRACTION * full.stat().st_size

    with pytest.raises(CommandFailed, match="bind"):
        cli.run(stripped, model.input_sets[0])

    bound = cli.bind(stripped, model.weights_file("a"))
    assert_all_same(cli.run_all(bound, model.input_sets), cli.run_all(full, model.input_sets))
