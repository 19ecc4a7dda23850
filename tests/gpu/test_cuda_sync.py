"""Weights from a trainer on one GPU to an engine on another, or on the same, in a process of its own
(`regraft.sync.group`); what needs two NVIDIA GPUs is skipped where there are fewer.

    python3 -m pytest tests/gpu/test_cuda_sync.py       # with the package regraft on PYTHONPATH
"""

from __future__ import annotations

import inspect
import json
import subprocess
import textwrap
import time
from typing import Any

import pytest
import torch

import regraft
from processes import free_address, process, said
from regraft.sync.group import GroupReceiver, GroupSender

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two NVIDIA GPUs")


def net(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.LayerNorm(128), torch.nn.Linear(128, 32))
    return torch.nn.Sequential(*layers).eval().bfloat16()


# Refits an engine with each version, of which the tag is the seed, and says how that compares with a build.
HEAD = "import torch\n" + inspect.getsource(net)
ENGINE = HEAD + textwrap.dedent(
    """
    import json, sys
    import regraft
    from regraft.sync.group import GroupReceiver

    def say(**facts):
        print(json.dumps(facts), flush=True)

    meeting, device, how = sys.argv[1:]
    place = torch.device(device)
    x = torch.randn(4, 64, dtype=torch.bfloat16).to(place)
    compiled = regraft.compile(net(0).to(place), (x,))
    if how == "process group":
        torch.cuda.set_device(place)
        torch.distributed.init_process_group("nccl", init_method=meeting, rank=1, world_size=2)
        receiver = GroupReceiver(torch.distributed.group.WORLD, device=place)
    else:
        receiver = GroupReceiver(meeting, rank=1, size=2, device=place)
    say(transport=receiver.transport)
    while True:
        try:
            applied = receiver.refit(compiled, timeout=60)
        except regraft.WeightsError as error:
            say(refused=str(error))
            continue
        except ConnectionError as error:
            say(ended=str(error))
            if how == "process group":
                torch.distributed.destroy_process_group()
            break
        fresh = regraft.compile(net(int(applied.tag)).to(place), (x,))
        with torch.inference_mode():
            is_same = torch.equal(compiled(x), fresh(x))
        report = applied.report
        say(same=is_same, applied=len(report.applied), fetched=len(report.fetched), version=applied.version)
    """
)

# Says that it takes part in a version, and hangs.
HANGS = textwrap.dedent(
    """
    import sys, time
    import torch
    from regraft.sync.link import Link

    link = Link(sys.argv[1], False, 1, 2, torch.device("cuda:1"), 60.0)
    print(link.transport, flush=True)
    link.hear("1/new", None)
    link.tell("1/ready/1", {})
    time.sleep(120)
    """
)


@pytest.fixture
def meeting() -> str:
    return free_address()


def told(process: subprocess.Popen[str]) -> Any:
    return json.loads(said(process))


def states(seed: int) -> dict[str, torch.Tensor]:
    return net(seed).to("cuda:0").state_dict()


def check(sender: GroupSender, engine: subprocess.Popen[str], transport: str) -> None:
    assert sender.transport == told(engine)["transport"] == transport
    for seed in (1, 2, 3):
        version = sender.send(states(seed), tag=str(seed))
        found = told(engine)
        # The norm's are the same in all.
        assert (found["same"], found["applied"], found["version"]) == (True, 4, version)
        assert transport == "gloo" or not found["fetched"]
    with pytest.raises(regraft.WeightsError, match=r"3\.bias") as error:
        sender.send({**states(4), "3.bias": torch.zeros(5, device="cuda:0", dtype=torch.bfloat16)})
    assert [problem.name for problem in error.value.problems] == ["rank 1"]
    assert "3.bias" in told(engine)["refused"]
    # Another manifest, then the first again.
    sender.send({name: value.clone() for name, value in reversed(states(5).items())}, tag="5")
    assert told(engine)["same"]


@two_gpus
def test_from_gpu_to_gpu(meeting: str) -> None:
    with process(ENGINE, meeting, "cuda:1", "address") as engine:
        with GroupSender(meeting, size=2, device="cuda:0") as sender:
            check(sender, engine, "nccl")
        assert "closed" in told(engine)["ended"]


@pytest.mark.parametrize(("device", "transport"), [("cuda:0", "ipc"), ("cpu", "gloo")])
def test_on_one_gpu_and_through_the_host(meeting: str, device: str, transport: str) -> None:
    """The engine is on the same GPU, or on none."""
    with (
        process(ENGINE, meeting, device, "address") as engine,
        GroupSender(meeting, size=2, device="cuda:0") as sender,
    ):
        check(sender, engine, transport)


@two_gpus
def test_a_process_group_of_nccl(meeting: str) -> None:
    with process(ENGINE, meeting, "cuda:1", "process group") as engine:
        torch.cuda.set_device(0)
        torch.distributed.init_process_group("nccl", init_method=meeting, rank=0, world_size=2)
        try:
            with GroupSender(torch.distributed.group.WORLD, device="cuda:0") as sender:
                check(sender, engine, "nccl")
        finally:
            torch.distributed.destroy_process_group()


@two_gpus
def test_a_receiver_that_hangs_in_a_broadcast(meeting: str) -> None:
    """The sender gives up in time, says so, and its GPU is free for other work."""
    with (
        process(HANGS, meeting) as other,
        GroupSender(meeting, size=2, device="cuda:0", timeout=60) as sender,
    ):
        assert other.stdout is not None and other.stdout.readline() == "nccl\n"
        sender._link._timeout = 3.0
        begin = time.monotonic()
        large = {"w": torch.ones(1 << 28, dtype=torch.uint8, device="cuda:0")}
        with pytest.raises(ConnectionError, match="gone or too slow"):
            sender.send(large, timeout=30)
        assert time.monotonic() - begin < 30
        x = torch.randn(512, 512, device="cuda:0")
        assert float((x @ torch.eye(512, device="cuda:0") - x).abs().max()) == 0
        torch.cuda.synchronize()
        with pytest.raises(ConnectionError, match="make a new group"):
            sender.send(large)


@two_gpus
def test_a_sender_that_is_killed(meeting: str) -> None:
    code = textwrap.dedent(
        """
        import sys, time
        import torch
        from regraft.sync.group import GroupSender

        sender = GroupSender(sys.argv[1], size=2, device="cuda:1")
        sender.send({"w": torch.full((1000,), 3.0, device="cuda:1")}, tag="one")
        print(sender.version, flush=True)
        time.sleep(120)
        """
    )
    with process(code, meeting) as trainer:
        receiver = GroupReceiver(meeting, rank=1, size=2, device="cuda:0")
        with receiver.next(timeout=60) as update:
            assert update.weights["w"].device == torch.device("cuda:0")
            assert float(update.weights["w"].sum()) == 3000
        assert told(trainer) == 1
        trainer.kill()
        with pytest.raises(ConnectionError, match="the sender is gone"):
            receiver.next(timeout=60)
        receiver.close()
