"""Weights from another process through a group of `torch.distributed` (`regraft.sync.group`), over gloo."""

from __future__ import annotations

import json
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from conftest import Cli
from exporting import ROOT, load_arrays
from processes import free_address, process, said

pytest.importorskip("regraft")

import torch

import regraft
from regraft import flat
from regraft.sync.group import GroupReceiver, GroupSender
from regraft.sync.link import Link
from regraft.sync.tensors import Room, sources

FIXTURES = ROOT / "crates/conformance/fixtures"
CPU = torch.device("cpu")


@pytest.fixture
def meeting() -> str:
    return free_address()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@contextmanager
def group(meeting: str, pool: ThreadPoolExecutor, size: int = 2) -> Iterator[tuple[GroupSender, list[Any]]]:
    """All ends in this process."""
    coming = [pool.submit(GroupReceiver, meeting, rank=r, size=size, timeout=20) for r in range(1, size)]
    with ExitStack() as ends:
        sender = ends.enter_context(GroupSender(meeting, size=size, timeout=20))
        yield sender, [ends.enter_context(receiver.result()) for receiver in coming]


def tensors(mark: float) -> dict[str, Any]:
    return {"w": torch.full((5, 300), mark), "b": np.full(7, mark, np.float16)}


def copied(receiver: GroupReceiver) -> tuple[int, str, dict[str, Any]]:
    with receiver.next(timeout=20) as update:
        return update.version, update.tag, {name: t.clone() for name, t in update.weights.items()}


def test_places_and_bits() -> None:
    """The manifest is that of shared memory, and the bytes are at the same places."""
    weight = torch.randn(6, 4).to(torch.bfloat16)
    given = {
        "model.weight": weight,
        "lm_head.weight": weight,
        "turned": torch.randn(3, 8).T,
        "part": torch.randn(9)[1:],
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "numpy": np.arange(5, dtype=np.int8),
        "read only": np.broadcast_to(np.float64(2.5), (3, 2)),
    }
    views = flat.views(given)
    manifest = flat.Manifest.of(views, limit=256)
    assert flat.Manifest.of(sources(given), limit=256) == manifest and len(manifest.buckets) > 1
    room = Room(manifest, CPU)
    for bucket in room.buckets:
        bucket.zero_()
    with torch.inference_mode():
        room.fill(sources(given))
        other = Room(manifest, CPU)
    other.fill(sources(given))
    expected = [np.zeros(size, np.uint8) for size in manifest.buckets]
    flat.fill(manifest, views, expected)
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(room.buckets, expected, strict=True))
    assert torch.equal(room.tensors["turned"], given["turned"]) and room.tensors["steps"].shape == ()
    assert room.tensors["lm_head.weight"].data_ptr() == room.tensors["model.weight"].data_ptr()
    with pytest.raises(regraft.WeightsError, match="complex64"):
        sources({"w": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.parametrize(
    ("handles", "what"),
    [
        ("x", "other handles came"),
        ([], "1 buckets were announced"),
        ([None], "no handle of memory"),
        ([["00", 64, 0, "00", 0, "00"]], "no handle of memory"),
        ([["no", 64, 0, "00", 0, "00", True]], "no handle of memory"),
        ([["00", 65, 0, "00", 0, "00", True]], "expected memory of 64 bytes, found 65"),
    ],
)
def test_handles_of_a_gpu_are_not_believed(handles: Any, what: str) -> None:
    manifest = flat.Manifest.of(sources({"w": torch.zeros(16)}))
    with pytest.raises(regraft.WeightsError, match=what):
        Room(manifest, CPU, handles)


def test_versions_and_tags(meeting: str, pool: ThreadPoolExecutor) -> None:
    with group(meeting, pool, 3) as (sender, receivers):
        assert (sender.transport, sender.receivers, sender.version) == ("gloo", 2, 0)
        with pytest.raises(TimeoutError, match="newer than version 0"):
            receivers[0].next(timeout=0.05)
        for version, given in enumerate([tensors(1.0), tensors(2.0), {"w": torch.ones(2)}], start=1):
            came = [pool.submit(copied, receiver) for receiver in receivers]
            assert sender.send(given, tag=f"step {version}") == version
            for got in came:
                number, tag, found = got.result()
                assert (number, tag, list(found)) == (version, f"step {version}", list(given))
                assert all(np.array_equal(found[name], given[name]) for name in given)
        assert sender.version == receivers[1].version == 3
        with pytest.raises(regraft.WeightsError, match="complex64"):
            sender.send({"w": np.zeros(2, np.complex64)})
        with pytest.raises(ValueError, match="at most 1000 characters"):
            sender.send(tensors(1.0), tag="x" * 1001)


def test_messages_do_not_pile_up(meeting: str, pool: ThreadPoolExecutor) -> None:
    with group(meeting, pool) as (sender, receivers):
        counts = []
        for _ in range(5):
            came = pool.submit(copied, receivers[0])
            sender.send(tensors(1.0))
            came.result()
            assert sender._link._store is not None
            counts.append(sender._link._store.num_keys())
        assert counts[1] == counts[-1], counts


def test_what_goes_wrong_at_a_receiver_is_told(meeting: str, pool: ThreadPoolExecutor) -> None:
    def breaks(receiver: GroupReceiver) -> None:
        with receiver.next(timeout=20):
            raise KeyError("a layer")

    with group(meeting, pool, 3) as (sender, (good, bad)):
        broken, came = pool.submit(breaks, bad), pool.submit(copied, good)
        with pytest.raises(regraft.WeightsError, match="1 of 2 receivers keep") as error:
            sender.send(tensors(1.0))
        (problem,) = error.value.problems
        assert (problem.kind, problem.name, problem.what) == ("refused", "rank 2", "KeyError: 'a layer'")
        assert came.result()[0] == sender.version == 1
        with pytest.raises(KeyError):
            broken.result()
        # The group is as good as before.
        again = [pool.submit(copied, receiver) for receiver in (good, bad)]
        assert sender.send(tensors(2.0)) == 2
        assert [got.result()[0] for got in again] == [2, 2]


def test_a_receiver_that_is_late(meeting: str, pool: ThreadPoolExecutor) -> None:
    with group(meeting, pool, 3) as (sender, (quick, late)):
        came = pool.submit(copied, quick)
        with pytest.raises(TimeoutError, match=r"within 0.1 s:\n  rank 2 has not asked for weights"):
            sender.send(tensors(1.0), timeout=0.1)
        assert sender.version == 0
        other = pool.submit(copied, late)
        assert sender.send(tensors(2.0)) == 2
        for got in (came, other):
            number, _, found = got.result()
            assert number == 2 and found["w"][0, 0] == 2.0
        # One that refits for too long: its answer is not needed for the next version.
        with ExitStack() as held:
            update = pool.submit(lambda: held.enter_context(late.next(timeout=20)))
            came = pool.submit(copied, quick)
            with pytest.raises(TimeoutError, match="rank 2 has not refitted"):
                sender.send(tensors(3.0), timeout=0.5)
            assert update.result().version == came.result()[0] == sender.version == 3
            with pytest.raises(ValueError, match="must be released"):
                late.next()
        with pytest.raises(ValueError, match="released"):
            _ = update.result().weights
        came, other = pool.submit(copied, quick), pool.submit(copied, late)
        assert sender.send(tensors(4.0)) == came.result()[0] == other.result()[0] == 4


def test_ends(meeting: str, pool: ThreadPoolExecutor) -> None:
    with group(meeting, pool) as (sender, (receiver,)):
        waiting = pool.submit(receiver.next)
        time.sleep(0.1)
        sender.close()
        with pytest.raises(ConnectionError, match="gone"):
            waiting.result(timeout=20)
        with pytest.raises(ConnectionError, match="was closed"):
            sender.send(tensors(1.0))
    # The port is free again.
    with group(meeting, pool) as (sender, (receiver,)):
        waiting = pool.submit(receiver.next)
        time.sleep(0.1)
        receiver.close()
        with pytest.raises(ConnectionError, match="the receiver was closed"):
            waiting.result(timeout=20)
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match="rank 1 was closed"):
            sender.send(tensors(1.0), timeout=60)
        assert time.monotonic() - begin < 20
        with pytest.raises(ConnectionError, match="was closed"):
            receiver.next()


def test_who_does_not_come(meeting: str, pool: ThreadPoolExecutor) -> None:
    with pytest.raises(TimeoutError, match=r"rank 1 of 2 has not come within 0\.3 s"):
        GroupSender(meeting, size=2, timeout=0.3)
    with pytest.raises(ConnectionError, match="no sender is at"):
        GroupReceiver(meeting, rank=1, size=2, timeout=0.3)
    for rank, size in [(0, 2), (2, 2), (None, 2), (1, None)]:
        with pytest.raises(ValueError, match="expected 0 for the sender"):
            GroupReceiver(meeting, rank=rank, size=size)
    for address in ("127.0.0.1:29600", "file:///tmp/x", "tcp://127.0.0.1"):
        with pytest.raises(ValueError, match="expected tcp://HOST:PORT"):
            GroupSender(address, size=2)
    with group(meeting, pool), pytest.raises(ValueError, match="rank 1 is another's"):
        GroupReceiver(meeting, rank=1, size=2)


@contextmanager
def false_sender(meeting: str, pool: ThreadPoolExecutor) -> Iterator[tuple[Link, GroupReceiver]]:
    coming = pool.submit(GroupReceiver, meeting, rank=1, size=2, timeout=5)
    link = Link(meeting, True, 0, 2, CPU, 5)
    with coming.result() as receiver:
        yield link, receiver
    link.close("over")


def test_a_sender_is_not_believed(meeting: str, pool: ThreadPoolExecutor) -> None:
    place = ["a", "f32", [4], 0, 0]
    with false_sender(meeting, pool) as (link, receiver):
        for number, (manifest, what) in enumerate(
            [
                ("x", "no manifest"),
                ({"buckets": [8], "tensors": [place]}, "outside"),
                ({"buckets": [64], "tensors": [[*place[:4], 2]]}, "begins at byte 2"),
                ({"buckets": [1 << 47], "tensors": [place]}, "memory"),
            ],
            start=1,
        ):
            link.tell(f"manifest/{number}", manifest if isinstance(manifest, str) else json.dumps(manifest))
            link.tell(f"{number}/new", {"tag": "", "timeout": 5, "manifest": number})
            link.tell(f"{number}/go", {"go": False})
            with pytest.raises((regraft.WeightsError, RuntimeError), match=what):
                receiver.next(timeout=5)
            answer = link.hear(f"{number}/ready/1", time.monotonic() + 5)
            assert answer is not None and what in answer["error"]
        for text in ("x", "[]", "{}", "[" * 100_000, '{"tag": 1, "timeout": 1, "manifest": 1}'):
            link.tell("5/new", text)
            with pytest.raises(regraft.WeightsError, match="another language"):
                receiver.next(timeout=5)


def test_a_receiver_that_does_not_broadcast(meeting: str, pool: ThreadPoolExecutor) -> None:
    """It says that it takes part, and hangs: the sender gives up, and says so from then on."""
    coming = pool.submit(Link, meeting, False, 1, 2, CPU, 5)
    with GroupSender(meeting, size=2, timeout=5) as sender:
        sender._link._timeout = 1.0
        coming.result().tell("1/ready/1", {})
        large = {"w": torch.zeros(100_000_000, dtype=torch.uint8)}
        for what in ("could not be moved", "make a new group"):
            with pytest.raises(ConnectionError, match=what):
                sender.send(large, timeout=5)
        assert sender.version == 0
    coming.result().close("over")


def test_a_sender_that_does_not_broadcast(meeting: str, pool: ThreadPoolExecutor) -> None:
    with false_sender(meeting, pool) as (link, receiver):
        link._timeout = receiver._link._timeout = 1.0
        link.tell("manifest/1", flat.Manifest.of(sources(tensors(1.0))).to_json())
        link.tell("1/new", {"tag": "", "timeout": 5, "manifest": 1})
        link.tell("1/go", {"go": True})
        for what in ("could not be moved", "make a new group"):
            with pytest.raises(ConnectionError, match=what):
                receiver.next(timeout=5)
        answer = link.hear("1/done/1", time.monotonic() + 5)
        assert answer is not None and "could not be moved" in answer["error"]


RECEIVER = textwrap.dedent(
    """
    import sys
    import regraft
    from regraft.sync.group import GroupReceiver

    meeting, rank, size, engine = sys.argv[1:]
    model = regraft.Model.load(engine)
    with GroupReceiver(meeting, rank=int(rank), size=int(size), timeout=30) as receiver:
        try:
            while True:
                try:
                    applied = receiver.refit(model)
                    print(applied.version, applied.tag, model.weights_digest(), flush=True)
                except regraft.WeightsError as error:
                    print("refused:", str(error).splitlines()[0], flush=True)
        except ConnectionError as error:
            print("ended:", error, flush=True)
    """
)


def test_three_processes(cli: Cli, meeting: str) -> None:
    """Two models are refitted; one of another network refuses, says why, and keeps its weights."""
    engines = []
    for name in ("mlp_gelu", "linear"):
        (cli.folder / name).mkdir()
        engines.append(cli.compile(FIXTURES / f"{name}.pt2"))
    held = load_arrays(FIXTURES / "mlp_gelu.safetensors")
    weights = {name[2:]: torch.from_numpy(array) for name, array in held.items() if name.startswith("b/")}
    expected = regraft.Model.load(engines[0])
    expected.refit(weights)
    with process(RECEIVER, meeting, 1, 3, engines[0]) as good, process(
        RECEIVER, meeting, 2, 3, engines[1]
    ) as bad, GroupSender(meeting, size=3, timeout=60) as sender:  # fmt: skip
        with pytest.raises(regraft.WeightsError, match="rank 2") as error:
            sender.send(weights, tag="b")
        assert [problem.name for problem in error.value.problems] == ["rank 2"]
        assert said(good) == f"1 b {expected.weights_digest()}"
        assert said(bad).startswith("refused:")
        # Killed in the middle of nothing: the sender does not wait forever.
        bad.kill()
        with pytest.raises((TimeoutError, ConnectionError), match="rank 2"):
            sender.send(weights, timeout=2)
        sender.close()
        assert said(good).startswith("ended:")


SENDER = textwrap.dedent(
    """
    import sys, time
    import torch
    import torch.distributed as dist
    from regraft.sync.group import GroupSender

    address, how = sys.argv[1:]
    meeting, size = address, 2
    if how == "process group":
        dist.init_process_group("gloo", init_method=address, rank=0, world_size=2)
        meeting, size = dist.group.WORLD, None
    sender = GroupSender(meeting, size=size, timeout=30)
    print("met", flush=True)
    print(sender.send({"w": torch.full((1000,), 3.0)}, tag="one"), flush=True)
    time.sleep(60)
    """
)
MEMBER = textwrap.dedent(
    """
    import sys
    import torch.distributed as dist
    from regraft.sync.group import GroupReceiver

    dist.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2)
    receiver = GroupReceiver(dist.group.WORLD, timeout=30)
    with receiver.next(timeout=30) as update:
        print(update.version, update.tag, float(update.weights["w"].sum()), flush=True)
    """
)


def test_a_process_group(meeting: str) -> None:
    with process(SENDER, meeting, "process group") as sender, process(MEMBER, meeting) as member:
        assert said(member) == "1 one 3000.0"
        assert [said(sender), said(sender)] == ["met", "1"]


def test_a_killed_sender(meeting: str) -> None:
    with process(SENDER, meeting, "address") as sender:
        receiver = GroupReceiver(meeting, rank=1, size=2, timeout=30)
        receiver.next(timeout=30).release()
        assert [said(sender), said(sender)] == ["met", "1"]
        killed = threading.Timer(0.5, sender.kill)
        killed.start()
        # Without a limit of its own.
        with pytest.raises(ConnectionError, match="the sender is gone"):
            receiver.next()
        killed.join()
        receiver.close()
