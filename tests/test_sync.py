"""Weights from another process through shared memory (`regraft.sync`)."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Cli
from exporting import ROOT, load_arrays

pytest.importorskip("regraft")

import regraft
from regraft import flat
from regraft.sync import Receiver, Sender

FIXTURES = ROOT / "crates/conformance/fixtures"


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "sync.sock")


@pytest.fixture
def sender(place: str) -> Iterator[Sender]:
    with Sender(place) as sender:
        yield sender


def arrays(mark: float) -> dict[str, np.ndarray]:
    return {"w": np.full((5, 300), mark, np.float32), "b": np.full(7, mark, np.float16)}


def read(update: Any) -> dict[str, np.ndarray]:
    """A copy: the memory is the sender's."""
    return {name: np.array(update.weights[name]) for name in update.weights.keys()}  # noqa: SIM118


def test_bytes_and_names_arrive() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.randn(6, 4).to(torch.bfloat16)
    given = {
        "model.layers.0.mlp.weight": weight,
        "lm_head.weight": weight,
        "turned": torch.randn(3, 8).T,
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "numpy": np.arange(5, dtype=np.int8),
    }
    tensors = flat.views(given)
    manifest = flat.Manifest.of(tensors, limit=256)
    assert len(manifest.buckets) > 1
    places = {place.name: place for place in manifest.places}
    tied = (places["lm_head.weight"], places["model.layers.0.mlp.weight"])
    assert (tied[0].bucket, tied[0].start) == (tied[1].bucket, tied[1].start)
    assert all(place.start % 64 == 0 for place in manifest.places)
    assert flat.Manifest.from_json(manifest.to_json()) == manifest

    buckets = [np.zeros(size, np.uint8) for size in manifest.buckets]
    flat.fill(manifest, tensors, buckets)
    found = flat.over(manifest, buckets)
    assert list(found.keys()) == sorted(given)
    for name, tensor in given.items():
        array = found[name]
        assert np.array_equal(np.asarray(array.as_bytes()), tensors[name].data)
        assert tuple(array.shape) == tuple(tensor.shape)
    assert found["lm_head.weight"].dtype == "bf16"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m.update(buckets=[-1]), "expected a size"),
        (lambda m: m["tensors"][0].__setitem__(4, 64), "outside"),
        (lambda m: m["tensors"][0].__setitem__(3, 1), "outside"),
        (lambda m: m["tensors"][0].__setitem__(2, [1 << 40, 1 << 40]), "outside"),
        (lambda m: m["tensors"][0].__setitem__(1, "f31"), "no tensor"),
        (lambda m: m["tensors"][0].pop(), "not enough values"),
        (lambda m: m["tensors"].append(m["tensors"][0]), "twice"),
        (lambda m: m.pop("tensors"), "tensors"),
    ],
)
def test_a_manifest_is_not_believed(change: Any, what: str) -> None:
    manifest = json.loads(flat.Manifest.of(flat.views({"a": np.zeros(4, np.float32)})).to_json())
    change(manifest)
    with pytest.raises(regraft.WeightsError, match=what):
        flat.Manifest.from_json(json.dumps(manifest))
    for text in ("", "[]", "[" * 100_000):
        with pytest.raises(regraft.WeightsError, match="no manifest"):
            flat.Manifest.from_json(text)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (("a", "f32", [3], 0, 8), "bytes 8 to 20 of a bucket of 16"),
        (("a", "f32", [1], 0, 2), "begins at byte 2"),
        (("a", "f32", [1], 1, 0), "bucket 1 of 1"),
        (("a", "f31", [1], 0, 0), "not a type"),
        (("a", "f32", [1 << 62], 0, 0), "a: "),
    ],
)
def test_tensors_lie_in_their_buckets(place: Any, what: str) -> None:
    with pytest.raises(regraft.WeightsError, match=what):
        regraft.StateDict.from_buffers([np.zeros(16, np.uint8)], [place])


def test_versions_and_tags(place: str, sender: Sender) -> None:
    with Receiver(place) as receiver:
        with pytest.raises(TimeoutError, match="newer than version 0"):
            receiver.next(timeout=0.05)
        assert sender.send(arrays(1.0), tag="first") == 1
        with receiver.next(timeout=5) as update:
            assert (update.version, update.tag) == (1, "first")
            found = read(update)
            assert all(np.array_equal(found[name], array) for name, array in arrays(1.0).items())
        with pytest.raises(ValueError, match="released"):
            _ = update.weights
        # What came between is left out; who joins late gets the newest.
        sender.send(arrays(2.0))
        sender.send(arrays(3.0))
        with receiver.next(timeout=5) as update, Receiver(place) as late, late.next(timeout=5) as same:
            assert update.version == same.version == 3
            assert read(same)["b"][0] == 3.0
        # Other tensors than before are other memory.
        sender.send({"w": np.zeros((2, 2))}, tag="other")
        with receiver.next(timeout=5) as update:
            assert list(read(update)) == ["w"]
        with pytest.raises(regraft.WeightsError, match="complex64"):
            sender.send({"w": np.zeros(2, np.complex64)})
        assert sender.version == 4


def test_what_is_read_is_not_written_to(place: str, sender: Sender) -> None:
    with Receiver(place) as slow, Receiver(place) as fast:
        sender.send(arrays(1.0))
        held = slow.next(timeout=5)
        for mark in (2.0, 3.0, 4.0):
            # One version of two is held, the other is the newest: it is in the way.
            if mark == 2.0:
                sender.send(arrays(mark))
                continue
            with pytest.raises(TimeoutError, match=str(os.getpid())):
                sender.send(arrays(mark), timeout=0.05)
        assert read(held)["w"][0, 0] == 1.0
        with fast.next(timeout=5) as update:
            assert update.version == 2
        held.release()
        assert sender.send(arrays(3.0), timeout=5) == 3
        # A receiver that is gone holds nothing.
        slow.next(timeout=5)
        sender.send(arrays(4.0), timeout=5)
        slow.close()
        assert sender.send(arrays(5.0), timeout=5) == 5
        with fast.next(timeout=5) as update:
            assert update.version == 5 and read(update)["b"][0] == 5.0


def test_ends(place: str) -> None:
    with pytest.raises(OSError, match="no sender is there"):
        Receiver(place, timeout=0.05)
    sender = Sender(place)
    with pytest.raises(FileExistsError, match="another process sends"):
        Sender(place)
    receiver = Receiver(place)
    sender.send(arrays(1.0))
    update = receiver.next(timeout=5)
    sender.close()
    # The memory is there as long as it is read.
    assert read(update)["w"][0, 0] == 1.0
    update.release()
    with pytest.raises(ConnectionError, match="gone"):
        receiver.next(timeout=5)
    assert not Path(place).exists()
    with pytest.raises(ValueError, match="closed"):
        sender.send(arrays(1.0))
    # A socket that a dead process left is taken over.
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.bind(place)
    left.close()
    Sender(place).close()


def test_nonsense_ends_a_connection_only(place: str, sender: Sender) -> None:
    for message in (b"x", b"{}", b'{"want": "1"}', b"[" * 60_000, b'{"release": 1.5}'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect(place)
            other.send(message)
            other.settimeout(5)
            assert other.recv(100) == b""
    sender.send(arrays(1.0))
    with Receiver(place) as receiver, receiver.next(timeout=5) as update:
        assert update.version == 1


def test_a_sender_is_not_believed(place: str) -> None:
    """Memory of another size than announced, none, or one that could shrink."""
    manifest = flat.Manifest.of(flat.views({"a": np.zeros(1000, np.float32)})).to_json().encode()

    def answer(listener: socket.socket, files: list[int]) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            message = {"version": 1, "tag": "", "slot": 1, "gone": []}
            socket.send_fds(connection, [json.dumps(message).encode()], files)
            connection.recv(1000)

    from regraft.sync.memory import sealed

    def memory(data: bytes, keeps: bool = True, size: int | None = None) -> int:
        size = size or len(data)
        file = sealed("test", size) if keeps else os.memfd_create("test", os.MFD_CLOEXEC)
        os.truncate(file, size)
        os.pwrite(file, data, 0)
        return file

    for files, what in [
        ([], "did not send"),
        ([memory(manifest)], "1 buckets were announced, 0 came"),
        ([memory(manifest), memory(b"", size=100)], "keeps its size"),
        ([memory(manifest), memory(b"", keeps=False, size=4032)], "keeps its size"),
        ([memory(b"{}"), memory(b"", size=4032)], "no manifest"),
    ]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(place)
            listener.listen()
            thread = threading.Thread(target=answer, args=(listener, files))
            thread.start()
            with Receiver(place) as receiver, pytest.raises(regraft.WeightsError, match=what):
                receiver.next(timeout=5)
            thread.join()
        os.unlink(place)
        for file in files:
            os.close(file)


TRAINER = textwrap.dedent(
    """
    import sys
    import numpy as np
    from regraft.sync import Sender

    def marked(mark):
        return {"a": np.full(300_000, mark, np.float32), "b": np.full(70_000, mark, np.float32)}

    with Sender(sys.argv[1]) as sender:
        print("ready", flush=True)
        for step in range(1, 301):
            sender.send(marked(step), tag=str(step), timeout=30)
        print("done", flush=True)
        sys.stdin.read()
    """
)


def test_no_version_is_torn(place: str) -> None:
    """Another process sends as fast as it can; what is read is of one version from its first byte to its
    last.
    """
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == "ready\n"
        seen = []
        with Receiver(place) as receiver:
            while not seen or seen[-1] != 300:
                with receiver.next(timeout=30) as update:
                    found = read(update)
                assert {float(array.min()) for array in found.values()} == {float(update.tag)}
                assert {float(array.max()) for array in found.values()} == {float(update.tag)}
                seen.append(update.version)
        assert seen == sorted(set(seen))
        trainer.communicate("", timeout=30)


def test_a_killed_trainer_leaves_nothing(place: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer, Receiver(place) as receiver:  # fmt: skip
        update = receiver.next(timeout=30)
        trainer.kill()
        trainer.wait(timeout=30)
        assert set(np.unique(read(update)["a"])) == {float(update.tag)}
        update.release()
        # It may have sent one more before.
        with pytest.raises(ConnectionError, match="gone"):  # noqa: PT012
            while True:
                receiver.next(timeout=30).release()
    with Sender(place) as sender:
        assert sender.send(arrays(1.0)) == 1


def test_refits(cli: Cli, place: str, sender: Sender) -> None:
    """A model refitted from the memory gives what it gives when it is refitted from a file, and keeps none
    of it.
    """
    tensors = load_arrays(FIXTURES / "mlp_gelu.safetensors")
    engine = cli.compile(FIXTURES / "mlp_gelu.pt2")
    model, expected = regraft.Model.load(engine), regraft.Model.load(engine)
    weights = {name[2:]: array for name, array in tensors.items() if name.startswith("b/")}
    expected.refit(weights)
    inputs = [tensors["input.0"]]
    with Receiver(place) as receiver:
        sender.send(weights, tag="b")
        applied = receiver.refit(model, timeout=5)
        assert (applied.version, applied.tag, len(applied.report.applied)) == (1, "b", 6)
        assert applied.seconds > 0 and applied.waited >= 0
        want = np.asarray(expected.run(inputs)[0])
        assert np.array_equal(np.asarray(model.run(inputs)[0]), want)
        assert model.weights_digest() == expected.weights_digest()
        outputs, generation = model.run_with_generation(inputs)
        assert np.array_equal(np.asarray(outputs[0]), want) and generation == model.generation
        # The memory is written to twice; the model has its own.
        for mark in (1.0, 2.0):
            sender.send({name: np.full_like(array, mark) for name, array in weights.items()}, timeout=5)
        gc.collect()
        assert np.array_equal(np.asarray(model.run(inputs)[0]), want)
        # Weights that do not fit change nothing, and are released.
        sender.send({"0.weight": np.zeros((3, 3), np.float32)})
        with pytest.raises(regraft.WeightsError, match=r"0\.weight"):
            receiver.refit(model, timeout=5)
        assert np.array_equal(np.asarray(model.run(inputs)[0]), want)
        begin = time.monotonic()
        for _ in range(3):
            sender.send(weights, timeout=5)
        assert time.monotonic() - begin < 5


def test_a_staged_generation_tells_its_number(cli: Cli) -> None:
    tensors = load_arrays(FIXTURES / "linear.safetensors")
    model = regraft.Model.load(cli.compile(FIXTURES / "linear.pt2"))
    staged = model.stage({name[2:]: array for name, array in tensors.items() if name.startswith("b/")})
    number, digest = staged.generation, staged.weights_digest()
    assert digest != model.weights_digest()
    staged.publish()
    assert (model.generation, model.weights_digest()) == (number, digest)
    with pytest.raises(regraft.StaleError):
        _ = staged.generation
