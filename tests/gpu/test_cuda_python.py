"""The Python package with modules and tensors on an NVIDIA GPU; skipped where there is none.

scripts/gpu/python.sh NATIVE FOLDER_FOR_LOGS
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regraft
import regraft.dynamo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")

CUDA = torch.device("cuda", 0)


def net(seed: int = 0, dtype: torch.dtype = torch.float16) -> torch.nn.Module:
    """A small network on the CPU."""
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.LayerNorm(128), torch.nn.Linear(128, 32))
    return torch.nn.Sequential(*layers).eval().to(dtype)


def x(rows: int = 4, dtype: torch.dtype = torch.float16, seed: int = 7) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, 64, dtype=dtype)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (found.float().cpu() - expected.float().cpu()).abs().max()
    assert difference <= 4e-3 * expected.float().abs().max().cpu(), float(difference)


def run(module: Callable[..., Any], *args: torch.Tensor) -> Any:
    with torch.inference_mode():
        return module(*args)


def test_a_module_on_a_gpu_is_compiled_for_it() -> None:
    module = net().to(CUDA)
    compiled = regraft.compile(module, (x().to(CUDA),))
    assert compiled.device == "cuda:0"
    found = run(compiled, x().to(CUDA))
    assert found.device == CUDA
    close(found, run(module, x().to(CUDA)))


def test_results_lie_where_inputs_do() -> None:
    compiled = regraft.compile(net(), (x(),), device="cuda")
    expected = run(net().to(CUDA), x().to(CUDA))
    for given in (x(), x().to(CUDA)):
        found = run(compiled, given)
        assert found.device == given.device
        close(found, expected)
    found = run(compiled, x().numpy())
    assert found.device.type == "cpu"
    close(found, expected)


def test_saved_modules_are_loaded_for_a_device(tmp_path: Path) -> None:
    compiled = regraft.compile(net().to(CUDA), (x().to(CUDA),))
    regraft.save(compiled, tmp_path / "saved")
    loaded = regraft.load(tmp_path / "saved")
    assert loaded.device == "cuda:0"
    assert torch.equal(run(loaded, x().to(CUDA)), run(compiled, x().to(CUDA)))
    model = regraft.load(tmp_path / "saved" / "0.rgf", device="cuda")
    assert model.device == "cuda:0"
    found = np.from_dlpack(model.run([x().numpy()])[0])
    close(torch.from_numpy(found), run(compiled, x()))
    with pytest.raises(regraft.EngineFileError, match="sm_"):
        regraft.load(tmp_path / "saved" / "0.rgf", device="cpu")


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_refits_take_weights_of_either_side(place: str) -> None:
    compiled = regraft.compile(net(0).to(CUDA), (x().to(CUDA),))
    compiled.refit(net(1).to(place).state_dict())
    fresh = regraft.compile(net(1).to(CUDA), (x().to(CUDA),))
    assert torch.equal(run(compiled, x().to(CUDA)), run(fresh, x().to(CUDA))), "law 1"


def test_weights_of_a_gpu_are_compared() -> None:
    compiled = regraft.compile(net(0).to(CUDA), (x().to(CUDA),))
    other = net(0).to(CUDA)
    with torch.no_grad():
        other[3].bias += 1
    report = compiled.refit(other.state_dict())
    assert report.applied == ("3.bias",)


def test_mutable_modules_follow_optimizers() -> None:
    module = net(dtype=torch.float32).to(CUDA)
    mutable = regraft.MutableModule(module)
    given = x(dtype=torch.float32).to(CUDA)
    first = run(mutable, given)
    close(first, run(module, given))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(given).square().mean().backward()
    optimizer.step()
    second = run(mutable, given)
    assert mutable.refits == 1 and not torch.equal(first, second)
    close(second, run(module, given))


def test_mutable_modules_move() -> None:
    module = net(dtype=torch.float32)
    mutable = regraft.MutableModule(module)
    run(mutable, x(dtype=torch.float32))
    mutable.to(CUDA)
    found = run(mutable, x(dtype=torch.float32).to(CUDA))
    assert found.device == CUDA and mutable.recompiles == 1
    close(found, run(module, x(dtype=torch.float32).to(CUDA)))


def test_loras_are_swapped_on_the_gpu() -> None:
    peft = pytest.importorskip("peft")
    module = net(dtype=torch.float32).to(CUDA)
    mutable = regraft.MutableModule(module)
    given = x(dtype=torch.float32).to(CUDA)
    before = run(mutable, given)
    config = peft.LoraConfig(r=4, target_modules=["0", "3"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, module)
    module.eval()
    with_lora = run(mutable, given)
    assert not torch.equal(with_lora, before)
    close(with_lora, run(module, given))


def test_torch_compile() -> None:
    module = net(dtype=torch.float32).to(CUDA)
    fast = torch.compile(module, backend="regraft")
    given = x(dtype=torch.float32).to(CUDA)
    close(run(fast, given), run(module, given))
    with torch.no_grad():
        module[0].weight.mul_(0.5)
    close(run(fast, given), run(module, given))


def test_parts_in_pytorch_are_on_the_gpu_too() -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.special.erfcx(self.first(x).relu()))

    torch.manual_seed(0)
    module = Mixed().eval().to(CUDA)
    given = x(dtype=torch.float32).to(CUDA)
    ops = ("aten.special_erfcx.default",)
    compiled = regraft.compile(module, (given,), min_block_size=1, torch_executed_ops=ops)
    assert compiled.report().in_pytorch
    close(run(compiled, given), run(module, given))
    found = run(compiled, given.cpu())
    assert found.device.type == "cpu"
    close(found, run(module, given))


def test_work_of_pytorch_before_and_after_is_waited_for() -> None:
    compiled = regraft.compile(net(dtype=torch.float32).to(CUDA), (x(dtype=torch.float32).to(CUDA),))
    reference = net(dtype=torch.float32).to(CUDA)
    slow = torch.randn(4096, 4096, device=CUDA)
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    given = x(dtype=torch.float32).to(CUDA)
    expected = run(reference, given * 3)
    torch.cuda.synchronize()
    for turn in range(30):
        with torch.cuda.stream(streams[turn % 3]), torch.inference_mode():
            for _ in range(5):
                slow = slow @ slow
                slow /= slow.abs().max()
            late = torch.empty_like(given).copy_(given + 0 * slow[0, 0]) * 3
            found = compiled(late)
            late.zero_()
            total = found * 1
        torch.cuda.synchronize()
        close(total, expected)


def test_memory_is_flat_over_many_runs_and_swaps() -> None:
    compiled = regraft.compile(net(0).to(CUDA), (x().to(CUDA),))
    states = [net(seed).to(CUDA).state_dict() for seed in (1, 2)]
    given = x().to(CUDA)
    expected = [run(net(seed).to(CUDA), given) for seed in (1, 2)]
    free = []
    for turn in range(200):
        compiled.refit(states[turn % 2])
        close(run(compiled, given), expected[turn % 2])
        if turn in (50, 199):
            torch.cuda.synchronize()
            free.append(torch.cuda.mem_get_info()[0])
    assert free[0] - free[1] <= 8 << 20, free


def test_an_index_out_of_range_names_the_value() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 4)).eval().to(CUDA)
    compiled = regraft.compile(module, (torch.tensor([[1, 2]], device=CUDA),))
    with pytest.raises(regraft.InputError, match="index 12 is out of range for an axis of size 10"):
        run(compiled, torch.tensor([[1, 12]], device=CUDA))
    close(
        run(compiled, torch.tensor([[1, 2]], device=CUDA)),
        run(module, torch.tensor([[1, 2]], device=CUDA)),
    )


def test_fork_after_use_is_refused_in_the_child() -> None:
    import os

    compiled = regraft.compile(net().to(CUDA), (x().to(CUDA),))
    run(compiled, x())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "ran"
        try:
            compiled.models[0].run([x().numpy()])
        except BaseException as error:
            text = str(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 4000).decode()
    os.waitpid(child, 0)
    assert "fork" in said and "spawn" in said, said
    close(run(compiled, x()), run(net().to(CUDA), x().to(CUDA)))


def test_memory_that_is_not_there_is_an_error_and_nothing_is_lost() -> None:
    class Outer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.unsqueeze(1) * x.unsqueeze(0)).cumsum(1).sum((1, 2))

    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    small = torch.randn(4, 64, device=CUDA)
    compiled = regraft.compile(Outer(), (small,), dynamic_shapes=({0: rows},))
    expected = run(compiled, small)
    with pytest.raises(regraft.RegraftError, match="memory"):
        run(compiled, torch.randn(1 << 17, 64, device=CUDA))
    assert torch.equal(run(compiled, small), expected)


def test_weights_on_the_gpu_stay_there() -> None:
    linear = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval()
    module = linear.half().to(CUDA)
    compiled = regraft.compile(module, (x().to(CUDA),))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    report = compiled.refit(module.state_dict())
    assert len(report.applied) == 4 and not report.fetched, report.fetched
    close(run(compiled, x().to(CUDA)), run(module, x().to(CUDA)))
    report = compiled.refit(module.state_dict())
    assert not report.applied and not report.fetched


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(regraft.RegraftError, match="there is no CUDA device 99"):
        regraft.compile(net(), (x(),), device="cuda:99")


def test_copies_are_modules_of_their_own() -> None:
    mutable = regraft.MutableModule(net(dtype=torch.float32).to(CUDA))
    given = x(dtype=torch.float32).to(CUDA)
    before = run(mutable, given)
    other = copy.deepcopy(mutable)
    with torch.no_grad():
        other[3].bias += 1
    close(run(other, given), before + 1)
    assert torch.equal(run(mutable, given), before)
