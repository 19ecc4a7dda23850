"""Checkpoints as people have them, compared with what PyTorch's `load_state_dict` gives.

`docs/checkpoints.md` has the table of containers and namings; each cell is a case of `test_cell`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from checkpoints import (
    CONTAINERS,
    INPUT,
    NAMINGS,
    Net,
    hugging_face,
    randomized,
    safetensors_file,
    saved,
    without_counters,
)
from conftest import Cli, CommandFailed
from regraft.errors import WeightsError
from small import save_program, uncompiled


@pytest.fixture(scope="module")
def compiled() -> regraft.Module:
    return regraft.compile(torch.export.export(randomized(Net(), 0), (INPUT,)))


@pytest.fixture(scope="module")
def tuned() -> nn.Module:
    return randomized(Net(), 1)


def expect(module: regraft.Module, net: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(module(INPUT), net(INPUT), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_cell(
    compiled: regraft.Module, tuned: nn.Module, container: str, naming: str, tmp_path: Path
) -> None:
    module = compiled.fork()
    report = module.refit(CONTAINERS[container](NAMINGS[naming](tuned), tmp_path))
    expect(module, tuned)
    assert bool(report.naming) == (naming != "plain")
    assert all(why == "counter" for _, why in report.ignored)


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_of_the_engine_may_be_the_longer_ones(naming: str, tmp_path: Path) -> None:
    """The other way round: what was compiled was wrapped, and the checkpoint is plain."""
    if naming == "gamma and beta":
        pytest.skip("no module is called so by PyTorch")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in NAMINGS[naming](randomized(Net(), 0)).items():
                place: nn.Module = self
                *path, last = name.split(".")
                for part in path:
                    if not hasattr(place, part):
                        place.add_module(part, nn.Module())
                    place = getattr(place, part)
                place.register_buffer(last, value)
            self.total = [name for name, value in self.state_dict().items() if value.is_floating_point()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = dict(self.named_buffers())
            return x.sum() + sum(
                (parts[name].sum() * (i + 1) for i, name in enumerate(self.total)), torch.zeros(())
            )

    module = regraft.compile(torch.export.export(Wrapped().eval(), (INPUT,)))
    tuned = randomized(Net(), 1)
    module.refit(saved(tuned.state_dict(), tmp_path))
    expected = Wrapped().eval()
    renamed = NAMINGS[naming](tuned)
    expected.load_state_dict(renamed)
    torch.testing.assert_close(module(INPUT), expected(INPUT), rtol=1e-4, atol=1e-4)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_real_wrappers(compiled: regraft.Module, tmp_path: Path) -> None:
    """State dicts of wrapped modules, as their own `state_dict()` gives them."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.nn.parallel import DistributedDataParallel

    for number, wrap in enumerate((DistributedDataParallel, torch.compile, checkpoint_wrapper)):
        net = randomized(Net(), 10 + number)
        wrapped = wrap(net)
        module = compiled.fork()
        module.refit(saved(wrapped.state_dict(), tmp_path))
        expect(module, net)
        # And by the names of parameters, which wrappers do not clean.
        names = {**dict(wrapped.named_parameters()), **dict(wrapped.named_buffers())}
        module = compiled.fork()
        module.refit({name: value.detach() for name, value in names.items()})
        expect(module, net)


@pytest.mark.parametrize("direction", ["old to new", "new to old"])
@pytest.mark.parametrize("kind", ["weight norm", "spectral norm"])
def test_parametrized_layers(kind: str, direction: str, tmp_path: Path) -> None:
    if kind == "weight norm":
        old, new = torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm
    else:
        old, new = torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm
    first, second = (new, old) if direction == "old to new" else (old, new)
    engine, source = randomized(Net(first), 0), randomized(Net(second), 1)
    module = regraft.compile(torch.export.export(engine, (INPUT,)))
    report = module.refit(saved(source.state_dict(), tmp_path))
    assert report.naming == "with other spellings of layers"
    with torch.no_grad():
        torch.testing.assert_close(module(INPUT), source(INPUT), rtol=1e-4, atol=1e-4)


def test_constants_are_the_programs(compiled: regraft.Module, tuned: nn.Module, tmp_path: Path) -> None:
    """A checkpoint that brings a non-persistent buffer does not change it, unless that is meant."""
    state = {**tuned.state_dict(), "scale": torch.zeros(4, dtype=torch.bfloat16)}
    for prefix in ("", "module."):
        named = {prefix + name: value for name, value in state.items()}
        for weights in (named, saved(named, tmp_path)):
            module = compiled.fork()
            report = module.refit(weights)
            expect(module, tuned)
            assert (prefix + "scale", "constant") in report.ignored
    module = compiled.fork()
    module.refit({**state, "scale": torch.tensor([1.0, 2.0, 3.0, 4.0])}, constants=["scale"])
    other = randomized(Net(), 1)
    other.scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expect(module, other)
    # A module is meant as it is.
    expect(regraft.refit_module_weights(compiled, other), other)
    with pytest.raises(WeightsError, match="named as changed"):
        module.refit(state, constants=["no_such_buffer"])


def test_two_sets_of_weights_are_an_error_that_names_them(
    compiled: regraft.Module, tuned: nn.Module, tmp_path: Path
) -> None:
    other = randomized(Net(), 2)
    path = saved({"state_dict": other.state_dict(), "ema": tuned.state_dict(), "step": 1}, tmp_path)
    with pytest.raises(WeightsError, match="several sets of weights: `ema`, `state_dict`") as caught:
        compiled.fork().refit(path)
    assert "key='ema'" in str(caught.value) and caught.value.cause == "several"
    for key, net in (("ema", tuned), ("state_dict", other)):
        module = compiled.fork()
        module.refit(path, key=key)
        expect(module, net)
        module = compiled.fork()
        module.refit(torch.load(path), key=key)
        expect(module, net)
    with pytest.raises(WeightsError, match="no weights under `student`"):
        compiled.fork().refit(path, key="student")
    # Of a generator and a discriminator in one flat file, by what names begin with.
    flat = {
        **{f"generator.{name}": value for name, value in tuned.state_dict().items()},
        **{f"discriminator.{name}": value for name, value in other.state_dict().items()},
    }
    with pytest.raises(WeightsError) as caught:
        compiled.fork().refit(saved(flat, tmp_path), strict=False)
    assert caught.value.cause == "ambiguous"
    assert "after removing `generator.`" in str(caught.value)
    assert "after removing `discriminator.`" in str(caught.value)
    for file in (saved(flat, tmp_path), safetensors_file(flat, tmp_path)):
        module = compiled.fork()
        module.refit(file, key="generator")
        expect(module, tuned)


def test_gan(compiled: regraft.Module, tuned: nn.Module, tmp_path: Path) -> None:
    content = {
        "generator": tuned.state_dict(),
        "discriminator": nn.Linear(2, 2).state_dict(),
        "optimizer_g": torch.optim.Adam(tuned.parameters()).state_dict(),
    }
    path = saved(content, tmp_path)
    with pytest.raises(WeightsError, match="`discriminator`, `generator`"):
        compiled.fork().refit(path)
    module = compiled.fork()
    module.refit(path, key="generator")
    expect(module, tuned)


class Unknown:
    """A class that nobody has who reads the file."""

    def __init__(self) -> None:
        self.values = [1, 2]


def test_foreign_objects_are_left_out(compiled: regraft.Module, tuned: nn.Module, tmp_path: Path) -> None:
    state = tuned.state_dict()
    contents: list[Any] = [
        {"state_dict": state, "args": argparse.Namespace(lr=1), "config": Unknown(), "fn": os.path.join},
        {**state, "_extra": Unknown()},
        {
            "model": state,
            "complex": torch.ones(2, dtype=torch.complex64),
            "f8": torch.ones(2).to(torch.float8_e4m3fn),
        },
    ]
    for content in contents:
        for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
            module = compiled.fork()
            module.refit(saved(content, tmp_path, **options))
            expect(module, tuned)
    weights = regraft.StateDict.open(saved(contents[1], tmp_path))
    assert weights.skipped == {"_extra": "an object of `test_checkpoints.Unknown`"}
    # What is needed and cannot be read is missing, with the reason.
    name = "head.weight"
    path = saved({**state, name: state[name].to(torch.complex64)}, tmp_path)
    with pytest.raises(WeightsError, match=r"head\.weight +missing: in its place is a tensor of complex64"):
        compiled.fork().refit(path)


def test_dtypes_convert_and_counters_may_be_left_out(
    compiled: regraft.Module, tuned: nn.Module, tmp_path: Path
) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in tuned.state_dict().items()}
        net = Net().eval()
        net.load_state_dict(state)
        module = compiled.fork()
        module.refit(safetensors_file(without_counters(state), tmp_path))
        expect(module, net)
    # Counters of another type and shape than the program's.
    state = {**tuned.state_dict(), "encoder.0.bn.num_batches_tracked": torch.ones(3)}
    module = compiled.fork()
    module.refit(state)
    expect(module, tuned)


def test_strict_as_in_pytorch(compiled: regraft.Module, tuned: nn.Module) -> None:
    state = {**tuned.state_dict(), "dropped.weight": torch.ones(3)}
    with pytest.raises(WeightsError, match="strict=False ignores names") as caught:
        compiled.fork().refit(state)
    assert [(p.kind, p.name) for p in caught.value.problems] == [("unknown", "dropped.weight")]
    module = compiled.fork()
    report = module.refit(state, strict=False)
    assert ("dropped.weight", "unknown") in report.ignored
    expect(module, tuned)
    module, net = compiled.fork(), randomized(Net(), 0)
    part = {"head.weight": tuned.state_dict()["head.weight"], "other": torch.ones(1)}
    found, reference = module.load_state_dict(part, strict=False), net.load_state_dict(part, strict=False)
    expect(module, net)
    assert found.unexpected_keys == reference.unexpected_keys
    # PyTorch does not miss counters of a state dict without versions.
    missing = {name for name in found.missing_keys if not name.endswith("num_batches_tracked")}
    assert missing == set(reference.missing_keys)
    with pytest.raises(WeightsError, match="none of the 1 given"):
        module.refit({"of another model": torch.ones(1)}, strict=False)


def test_renames(compiled: regraft.Module, tuned: nn.Module, tmp_path: Path) -> None:
    state = {name.replace("encoder.1", "trunk.last"): value for name, value in tuned.state_dict().items()}
    path = saved({f"module.{name}": value for name, value in state.items()}, tmp_path)
    with pytest.raises(WeightsError) as caught:
        compiled.fork().refit(path)
    assert caught.value.cause == "near_rule"
    module = compiled.fork()
    module.refit(path, rename={"module.trunk.last": "module.encoder.1"})
    expect(module, tuned)
    with pytest.raises(WeightsError, match="no name begins with this prefix"):
        module.refit(path, rename={"nothing": "encoder"})


def test_advice_follows_the_cause(compiled: regraft.Module, tuned: nn.Module, tmp_path: Path) -> None:
    state = dict(tuned.state_dict())

    def cause(weights: Any) -> tuple[str, str]:
        with pytest.raises(WeightsError) as caught:
            compiled.fork().refit(weights)
        return caught.value.cause, str(caught.value)

    few = {"head.weight": state["head.weight"], "head.bias": state["head.bias"]}
    assert cause(few)[0] == "few_keys" and "partial=True" in cause(few)[1]
    folded = {name: value for name, value in state.items() if ".bn." not in name}
    found = cause({**folded, "encoder.0.conv.bias": torch.zeros(4), "encoder.1.conv.bias": torch.zeros(4)})
    assert found[0] == "folded_norm" and "partial" not in found[1] and "without optimization" in found[1]
    assert cause(folded)[0] == "folded_norm"
    packed = {**state, "head.qweight": torch.zeros(1), "head.qzeros": torch.zeros(1)}
    del packed["head.weight"]
    assert cause(packed)[0] == "quantized" and "AWQ or GPTQ" in cause(packed)[1]
    larger = {name: torch.zeros([*value.shape, 2]) for name, value in state.items()}
    assert cause(larger)[0] == "other_model" and "partial" not in cause(larger)[1]
    assert cause({"a.b": torch.ones(1)})[0] == "other_model"
    # Suggestions have the shape that is wanted.
    text = cause({**state, "haed.weight": torch.zeros(9)})[1]
    assert "did you mean" not in text and "haed.weight  unknown: the engine has no such source" in text
    swapped = {("haed.weight" if name == "head.weight" else name): value for name, value in state.items()}
    assert "did you mean head.weight?" in cause(swapped)[1]
    # No advice of the command line.
    assert "--" not in text


def test_an_optimised_onnx_file_has_no_norms(
    compiled: regraft.Module, tuned: nn.Module, tmp_path: Path
) -> None:
    """Its exporter folded the batch norms into convolutions, whose names and number are others then."""
    path = tmp_path / "optimized.onnx"
    torch.onnx.export(tuned, (INPUT,), path, dynamo=False, do_constant_folding=True)
    with pytest.raises(WeightsError) as caught:
        compiled.fork().refit(path)
    assert caught.value.cause == "folded_norm" and "partial" not in str(caught.value)
    assert "optimize=False, do_constant_folding=False" in str(caught.value)


class WithDroppedHead(nn.Module):
    """A head of pre-training, which the program does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.dropped = nn.Linear(4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_what_no_slot_needs_never_fails(tmp_path: Path) -> None:
    engine = regraft.compile(torch.export.export(randomized(WithDroppedHead(), 0), (INPUT,)))
    tuned = randomized(WithDroppedHead(), 1)
    state = dict(tuned.state_dict())
    without = {name: value for name, value in state.items() if not name.startswith("dropped")}
    other = {**without, "dropped.weight": torch.ones(2, 3), "dropped.bias": torch.ones(2, dtype=torch.int64)}
    for weights in (state, without, other, without_counters(without)):
        for prefix in ("", "module."):
            module = engine.fork()
            report = module.refit(saved({prefix + name: value for name, value in weights.items()}, tmp_path))
            expect(module, tuned.net)
            unread = {name for name, why in report.ignored if why == "unread"}
            assert unread == (
                {prefix + "dropped.weight", prefix + "dropped.bias"} if weights is other else set()
            )


@pytest.mark.parametrize("naming", ["plain", "module.", "gamma and beta"])
def test_check_and_reports_say_the_same(cli: Cli, tuned: nn.Module, naming: str) -> None:
    engine = cli.compile(save_program(cli, randomized(Net(), 0), (INPUT,)))
    state = {**NAMINGS[naming](tuned), "dropped.weight": torch.ones(3)}
    weights = saved(state, cli.folder)
    found = json.loads(cli.call("check", engine, weights, "--ignore-unknown", "--json"))
    report = cli.path("report", ".json")
    options = ["--ignore-unknown", "--report", report, "-o", cli.path("refitted", ".rgf")]
    cli.call("refit", engine, "--weights", weights, *options)
    said = json.loads(report.read_text())
    assert (found["naming"], found["ignored"]) == (said["naming"], said["ignored"])
    assert bool(found["naming"]) == (naming != "plain")
    with pytest.raises(CommandFailed) as one:
        cli.call("check", engine, weights)
    with pytest.raises(CommandFailed) as other:
        cli.call("refit", engine, "--weights", weights, "-o", cli.path("refused", ".rgf"))
    problem = re.compile(r"^ .*dropped\.weight .*$|^  help: .*$", re.M)
    assert problem.findall(str(one.value)) == problem.findall(str(other.value)) != []


def test_what_a_file_has_in_another_form_is_not_kept(
    compiled: regraft.Module, tuned: nn.Module, tmp_path: Path
) -> None:
    """Neither in part nor leniently: the file has these weights, and they cannot be read."""
    state = dict(tuned.state_dict())
    weight = state.pop("head.weight")
    packed = {"head.qweight": torch.zeros(1, dtype=torch.int32), "head.scales": torch.zeros(1)}
    narrow = saved({**state, "head.weight": weight.to(torch.float8_e4m3fn)}, tmp_path)
    given: list[tuple[Any, str]] = [
        ({**state, **packed}, "head.qweight .quantized."),
        ({f"model.{name}": value for name, value in {**state, **packed}.items()}, "head.qweight .quantized."),
        (narrow, "float8"),
    ]
    for weights, found in given:
        for options in ({"strict": False}, {"strict": False, "partial": True}):
            module = compiled.fork()
            with pytest.raises(WeightsError, match=rf"head\.weight +missing: in its place is .*{found}"):
                module.refit(weights, **options)
    # What is not there at all is kept, as PyTorch does.
    assert "head.weight" in compiled.fork().refit(state, strict=False).kept


class OnAnotherDevice:
    """What a tensor of a device is saved as that PyTorch has no storages for."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        arguments = (self.tensor, self.tensor.dtype, "cpu", False)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, arguments


def test_tensors_of_other_devices(compiled: regraft.Module, tuned: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "device.pt"
    torch.save({name: OnAnotherDevice(value) for name, value in tuned.state_dict().items()}, path)
    assert torch.load(path, weights_only=True).keys() == tuned.state_dict().keys()
    module = compiled.fork()
    module.refit(path)
    expect(module, tuned)


def test_folders(compiled: regraft.Module, tuned: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a folder without weight files"):
        compiled.fork().refit(tmp_path)
    path = safetensors_file(tuned.state_dict(), tmp_path, "one.safetensors")
    module = compiled.fork()
    module.refit(tmp_path)
    expect(module, tuned)
    path.rename(tmp_path / "a.safetensors")
    safetensors_file(tuned.state_dict(), tmp_path, "b.safetensors")
    with pytest.raises(WeightsError, match=r"name one of them: a\.safetensors, b\.safetensors"):
        compiled.fork().refit(tmp_path)
    hugging_face(tuned.state_dict(), tmp_path)
    module.refit(tmp_path)


def test_nothing_is_executed(compiled: regraft.Module, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/executed",)

    state = {"state_dict": Net().state_dict(), "evil": Evil()}
    for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5}):
        weights = regraft.StateDict.open(saved(state, tmp_path, **options))
        assert weights.skipped == {"evil": "an object of `posix.system`"}
    assert not (tmp_path / "executed").exists()


def test_modules_with_parts_in_pytorch(tuned: nn.Module, tmp_path: Path) -> None:
    """The same for a module of engines and parts that stay in PyTorch."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.basis = nn.Parameter(torch.ones(5, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return uncompiled(self.basis) @ self.net(x).T

    module = regraft.compile(torch.export.export(randomized(Mixed(), 0), (INPUT,)), min_block_size=1)
    assert module.report().in_pytorch
    other = randomized(Mixed(), 1)
    state = {f"_orig_mod.{name}": value for name, value in other.state_dict().items()}
    report = module.refit(saved({"state_dict": {**state, "_orig_mod.net.scale": torch.zeros(4)}}, tmp_path))
    assert report.naming == "after removing `_orig_mod.`"
    assert ("_orig_mod.net.scale", "constant") in report.ignored
    with torch.no_grad():
        torch.testing.assert_close(module(INPUT), other(INPUT), rtol=1e-4, atol=1e-4)
    with pytest.raises(WeightsError) as caught:
        module.refit({name: value for name, value in other.state_dict().items() if name != "basis"})
    assert [(p.kind, p.name) for p in caught.value.problems] == [("missing", "basis")]


def test_the_table_of_the_documentation_is_complete() -> None:
    text = (Path(__file__).parent.parent / "docs/checkpoints.md").read_text()
    lines = [line for line in text.splitlines() if line.count("✓") == len(NAMINGS)]
    assert [line.split("|")[2].strip().strip("`") for line in lines] == list(CONTAINERS)
    heading = next(line for line in text.splitlines() if line.startswith("| container |"))
    assert [cell.strip().strip("`") for cell in heading.split("|")[3:-1]] == list(NAMINGS)
