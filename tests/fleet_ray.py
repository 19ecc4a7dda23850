"""A fleet on Ray Serve (`regraft.serve.ray`): a cluster of several processes on this machine, and what dies
in it.

Run by scripts/fleet-test.sh.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

import regraft
from regraft.serve.ray import (
    Answer,
    FleetError,
    Published,
    Replica,
    application,
    forget,
    publish_everywhere,
    status,
)
from regraft.serve.ray import ledger as ledgers
from regraft.serve.ray import replica as replicas
from regraft.serve.ray.orders import NAMESPACE, ledger_name

FIXTURES = Path(__file__).resolve().parent.parent / "crates/conformance/fixtures"
REGRAFT = os.environ["REGRAFT_BIN"]
APP = "fleet"
WAIT = 120.0
# How much is done while replicas are killed; more on machines that have the time.
REQUESTS = int(os.environ.get("REGRAFT_FLEET_REQUESTS", "10000"))
PUBLICATIONS = int(os.environ.get("REGRAFT_FLEET_PUBLICATIONS", "8"))
REPLICAS = int(os.environ.get("REGRAFT_FLEET_REPLICAS", "4"))
# Within how many seconds after a publication those that took part serve it.
WITHIN = float(os.environ.get("REGRAFT_FLEET_WITHIN", "1.0"))
SEED = int(os.environ.get("REGRAFT_FLEET_SEED", "0"))


class Fragile(Replica):
    """A replica that dies, or fails, where a file asks for it. The process that takes the file does it."""

    def __init__(self, engine: str, orders: str, **options: Any) -> None:
        self.orders = Path(orders)
        at, member = self.at, replicas.Member
        stage, publish = member.stage, member.publish

        def fragile_stage(self: Any, *arguments: Any) -> Any:
            at("stage")
            ready = stage(self, *arguments)
            at("staged")
            return ready

        def fragile_publish(self: Any, version: int) -> None:
            at("publish")
            publish(self, version)
            at("published")

        member.stage, member.publish = fragile_stage, fragile_publish  # type: ignore[method-assign]
        super().__init__(engine, **options)
        threading.Thread(target=self.watch, daemon=True).start()

    def run(self, inputs: Any) -> Answer:
        self.at("run")
        return super().run(inputs)

    def watch(self) -> None:
        """Dies at any moment, whatever is done then."""
        while True:
            time.sleep(0.01)
            self.at("any")

    def at(self, where: str) -> None:
        for what in ("die", "fail"):
            try:
                os.rename(self.orders / f"{what}-{where}", self.orders / f"done-{os.getpid()}")
            except FileNotFoundError:
                continue
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("as it was asked to")

    def who(self) -> tuple[str, int]:
        time.sleep(0.02)
        return self._member.name, os.getpid()

    async def slowly(self, inputs: list[Any]) -> Answer:
        await asyncio.sleep(0.2)
        return await self.run_async(inputs)


def marked(mark: float) -> dict[str, np.ndarray]:
    """Weights with which each output but the first is the mark, and the first is 0: it would not be if one
    layer had another mark than the other.
    """
    weights = {
        "0.weight": np.zeros((16, 10)), "0.bias": np.full(16, mark),
        "2.weight": np.zeros((12, 16)), "2.bias": np.full(12, mark),
        "4.weight": np.zeros((5, 12)), "4.bias": np.full(5, mark),
    }  # fmt: skip
    weights["2.weight"][0, 0], weights["2.bias"][0] = 1.0, 0.0
    weights["4.weight"][0, :2], weights["4.bias"][0] = (1.0, -1.0), 0.0
    return {name: array.astype(np.float32) for name, array in weights.items()}


def mark_of(answer: Answer) -> float:
    output = answer.outputs[0]
    assert output.shape == (3, 5) and not output[:, 0].any(), output
    (mark,) = np.unique(output[:, 1:])
    return float(mark)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    engine = folder / "mlp.rgf"
    environment = os.environ | {"REGRAFT_CACHE_DIR": str(folder / "cache")}
    subprocess.run([REGRAFT, "compile", FIXTURES / "mlp_gelu.pt2", "-o", engine], check=True, env=environment)
    return engine


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=32, include_dashboard=False, object_store_memory=200 << 20, logging_level="warning")
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()
    ray.shutdown()


class Fleet:
    """An application of one deployment."""

    inputs = (np.ones((3, 10), np.float32),)

    def __init__(self, engine: Path, orders: Path, **options: Any) -> None:
        self.engine, self.orders = engine, orders
        self.options = {
            "ray_actor_options": {"num_cpus": 0.1},
            "health_check_period_s": 1.0,
            "graceful_shutdown_timeout_s": 2.0,
            "max_ongoing_requests": 16,
        } | options
        self.handle = self.run()

    def run(self, **options: Any) -> Any:
        self.options |= options
        deployment = serve.deployment(Fragile, name="Fragile", **self.options)
        app = deployment.bind(str(self.engine), str(self.orders), threads=1)
        return serve.run(app, name=APP, route_prefix=None)

    def publish(self, mark: float, **options: Any) -> Any:
        return publish_everywhere(marked(mark), app=APP, deployment="Fragile", **options)

    def ask(self) -> Answer:
        return self.handle.remote(self.inputs).result(timeout_s=WAIT)

    def versions(self) -> dict[str, int]:
        return status(app=APP, deployment="Fragile")["replicas"]

    def everyone(self, count: int) -> dict[str, int]:
        """Waits until so many replicas answer; their processes."""

        def asked() -> dict[str, int]:
            waiting = [self.handle.who.remote() for _ in range(8 * count)]
            return dict(one.result(timeout_s=WAIT) for one in waiting)

        until(lambda: len(self.versions()) == count)
        return until(lambda: (found := asked()) and len(found) == count and found)

    def order(self, what: str) -> None:
        (self.orders / what).touch()

    def kills(self) -> int:
        """How many processes died of an order."""
        return len(list(self.orders.glob("done-*")))


def until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT
    while True:
        try:
            value = true()
        except ray.exceptions.RayActorError:
            value = False
        if value:
            return value
        assert time.monotonic() < end, f"not within {WAIT} s"
        time.sleep(0.2)


@pytest.fixture
def fleet(engine: Path, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    def make(**options: Any) -> Fleet:
        return Fleet(engine, tmp_path, **options)

    yield make
    serve.delete(APP)
    forget(app=APP, deployment="Fragile")


def test_all_or_none(fleet: Callable[..., Fleet], engine: Path, tmp_path: Path) -> None:
    running = fleet(num_replicas=3)
    assert len(running.everyone(3)) == 3
    assert running.ask().version == 0
    first = running.publish(101.0)
    assert first.version == 1 and len(first.replicas) == 3 and not first.lost
    assert (mark_of(running.ask()), running.ask().version) == (101.0, 1)
    assert set(running.versions().values()) == {1}

    # Weights that do not fit, weights of which one replica cannot make slots, and a file that is none.
    with pytest.raises(FleetError, match="3 of 3 replicas could not stage; nothing was published") as failure:
        publish_everywhere({"0.weight": np.zeros(3, np.float32)}, app=APP, deployment="Fragile")
    assert "0.weight" in str(failure.value) and "missing" in str(failure.value)
    running.order("fail-stage")
    with pytest.raises(FleetError, match="1 of 3 replicas could not stage") as failure:
        running.publish(102.0)
    assert "as it was asked to" in str(failure.value)
    with pytest.raises(regraft.WeightsError):
        publish_everywhere(tmp_path / "none.safetensors", app=APP, deployment="Fragile")
    assert {mark_of(running.ask()) for _ in range(20)} == {101.0}
    assert set(running.versions().values()) == {1}

    # One that staged and cannot publish is ended: nobody gets old weights from it.
    running.order("fail-publish")
    third = running.publish(103.0)
    assert third.version == 2 and len(third.replicas) == 2
    assert [why for why in third.lost.values() if "as it was asked to" in why]
    assert {mark_of(running.ask()) for _ in range(20)} == {103.0}
    running.everyone(3)
    assert {mark_of(running.ask()) for _ in range(20)} == {103.0}

    # A part of the weights, a file; a replica that joins then gets both.
    part = {"4.bias": np.array([0, 7, 7, 7, 7], np.float32)}
    assert publish_everywhere(part, app=APP, deployment="Fragile", partial=True).version == 3
    assert mark_of(running.ask()) == 7.0
    running.run(num_replicas=4)
    running.everyone(4)
    assert {(a.version, mark_of(a)) for a in (running.ask() for _ in range(40))} == {(3, 7.0)}
    for mark in range(200, 220):
        part["4.bias"][1:] = mark
        publish_everywhere(part, app=APP, deployment="Fragile", partial=True)
    file = tmp_path / "w.safetensors"
    write(file, marked(300.0))
    assert publish_everywhere(file, app=APP, deployment="Fragile").version == 24
    assert mark_of(running.ask()) == 300.0

    # A ledger that dies learns the newest weights from the replicas.
    ledger = ray.get_actor(ledger_name(APP, "Fragile"), NAMESPACE)
    ray.kill(ledger, no_restart=False)
    until(lambda: set(running.versions().values()) == {24} and len(running.versions()) == 4)
    running.run(num_replicas=5)
    running.everyone(5)
    assert {(a.version, mark_of(a)) for a in (running.ask() for _ in range(50))} == {(24, 300.0)}
    assert running.publish(301.0).version == 25
    assert {mark_of(running.ask()) for _ in range(50)} == {301.0}

    # Another engine in the same place starts with its own weights, and takes part from then on.
    other = tmp_path / "other.rgf"
    subprocess.run([REGRAFT, "refit", engine, "--weights", file, "-o", other], check=True)
    running.engine = other
    running.run(num_replicas=2)
    running.everyone(2)
    assert {(a.version, mark_of(a)) for a in (running.ask() for _ in range(20))} == {(25, 300.0)}
    time.sleep(2)
    assert set(running.versions().values()) == {25} and len(running.versions()) == 2
    assert running.publish(302.0).version == 26
    assert {(a.version, mark_of(a)) for a in (running.ask() for _ in range(20))} == {(26, 302.0)}

    # What a request can get wrong.
    with pytest.raises(Exception, match="expected a list of arrays"):
        running.handle.remote("text").result(timeout_s=WAIT)
    with pytest.raises(Exception, match="expected the inputs"):
        running.handle.remote({"other": running.inputs[0]}).result(timeout_s=WAIT)
    name = regraft.Model.load(running.engine).inputs[0][0]
    assert mark_of(running.handle.remote({name: running.inputs[0]}).result(timeout_s=WAIT)) == 302.0


def all_serve(versions: dict[str, int], outcome: Published) -> bool:
    """Whether all that took part in a publication, and are still there, serve it."""
    return all(versions.get(name, outcome.version) == outcome.version for name in outcome.replicas)


def test_replicas_die_under_load(fleet: Callable[..., Fleet]) -> None:
    """No answer mixes generations, none is older than what was published before it was asked for, and no
    request is lost but those in flight on a process that was killed.
    """
    running = fleet(num_replicas=REPLICAS)
    running.everyone(REPLICAS)
    clients = 8
    newest = running.publish(1000.0).version
    marks = {newest: 1000.0}
    stop = threading.Event()
    lost: Counter[str] = Counter()
    wrong: list[str] = []
    done = [0] * clients

    def client(index: int) -> None:
        while not stop.is_set():
            floor = newest
            try:
                answer = running.handle.remote(running.inputs).result(timeout_s=WAIT)
            except ray.exceptions.RayActorError as error:
                lost[type(error).__name__] += 1
                continue
            except Exception as error:
                wrong.append(f"lost, and not with its process: {type(error).__name__}: {error}")
                continue
            done[index] += 1
            try:
                mark = mark_of(answer)
            except (AssertionError, ValueError) as error:
                wrong.append(f"mixed: {error}")
                continue
            # Of a publication that is under way the version is not known here yet.
            if answer.version < floor or marks.get(answer.version, mark) != mark:
                wrong.append(f"version {answer.version} with mark {mark}, after {floor}")

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    chance = random.Random(SEED)
    moments = ["die-stage", "die-staged", "die-publish", "die-published", "die-run", "die-any"]
    round = 0
    late: list[float] = []
    try:
        while sum(done) < REQUESTS or round < PUBLICATIONS or running.kills() < len(moments):
            orders = []
            # So that one is left.
            if len(running.versions()) > max(REPLICAS // 2, 1):
                # Each once, then any of them.
                kills = running.kills()
                moment = moments[kills] if kills < len(moments) else chance.choice(moments)
                wait = chance.uniform(0, 0.2) if moment == "die-any" else 0.0
                orders.append(threading.Timer(wait, running.order, (moment,)))
                orders[0].start()
            mark = 1001.0 + round
            outcome = running.publish(mark)
            begin = time.monotonic()
            marks[outcome.version] = mark
            newest = outcome.version
            until(lambda now=outcome: all_serve(running.versions(), now))
            late.append(time.monotonic() - begin)
            round += 1
            if round % 50 == 0:
                print(f"\n{round} publications, {running.kills()} kills, {sum(done)} answers", flush=True)
            assert not wrong, wrong[:5]
            for order in orders:
                order.join()
            time.sleep(0.1)
            for left in running.orders.glob("die-*"):
                left.unlink(missing_ok=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    kills = running.kills()
    print(f"\n{sum(done)} answers, {round} publications, {kills} kills, lost {dict(lost)}")
    print(f"after a publication those that took part serve it within {max(late):.2f} s")
    assert not wrong, wrong[:5]
    assert max(late) <= WITHIN
    # Each client has one request at a time.
    assert sum(lost.values()) <= clients * kills
    # Those in the place of the killed ones.
    until(lambda: list(running.versions().values()) == [newest] * REPLICAS)


def test_a_word_that_comes_late_costs_no_place() -> None:
    ledger = ledgers.Ledger.__new__(ledgers.Ledger)
    ledger._was_lost, ledger._lock, ledger._version = False, asyncio.Lock(), 5
    member = ledgers._Member
    ledger._members = {"confirmed": member(None, "engine", 5), "behind": member(None, "engine", 4)}

    def has_place(name: str, version: int) -> bool:
        return asyncio.run(ledger.pulse(name, "engine", version, None))

    # It was sent before the replica published.
    assert has_place("confirmed", 4) and has_place("confirmed", 5)
    assert not has_place("behind", 4) and not has_place("unknown", 5)
    assert list(ledger._members) == ["confirmed"]


def test_autoscaling(fleet: Callable[..., Fleet]) -> None:
    """Replicas that come with the load answer from the newest weights, and those that go hold no
    publication up.
    """
    scaling = {
        "min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 1, "metrics_interval_s": 0.2,
        "look_back_period_s": 0.5, "upscale_delay_s": 0.2, "downscale_delay_s": 1.0,
    }  # fmt: skip
    running = fleet(autoscaling_config=scaling)
    running.everyone(1)
    version = running.publish(55.0).version
    seen: set[str] = set()

    def load() -> bool:
        waiting = [running.handle.slowly.remote(running.inputs) for _ in range(12)]
        for one in waiting:
            answer = one.result(timeout_s=WAIT)
            assert (answer.version, mark_of(answer)) == (version, 55.0)
            seen.add(answer.replica)
        return len(seen) >= 2

    until(load)
    until(lambda: running.publish(55.0) and len(running.versions()) == 1)
    assert mark_of(running.ask()) == 55.0


def test_a_plain_application(engine: Path) -> None:
    with pytest.raises(FleetError, match="no replica of Replica in the application none"):
        publish_everywhere(marked(1.0), app="none")
    handle = serve.run(
        application(engine, threads=1, ray_actor_options={"num_cpus": 0.1}), name="plain", route_prefix=None
    )
    try:
        publish_everywhere(marked(60.0), app="plain")
        assert mark_of(handle.remote(Fleet.inputs).result(timeout_s=WAIT)) == 60.0
    finally:
        serve.delete("plain")
        forget(app="plain")


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    header, data, at = {}, b"", 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        data += array.tobytes()
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
