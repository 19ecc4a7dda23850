"""A replica: an engine in a process of Ray Serve, and what the ledger may ask of it."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import ray
from ray import serve

from regraft._regraft import Model, Staged
from regraft.errors import InputError, RegraftError
from regraft.flat import Bytes, Manifest, fill, over, views
from regraft.serve.ray.ledger import Ledger
from regraft.serve.ray.orders import NAMESPACE, Failure, Order, Ready, ledger_name

__all__ = ["Answer", "Replica"]

# Seconds between two words to the ledger.
_PULSE = 0.5
# How long a replica waits for its place in the ledger: a publication may be under way.
_PATIENCE = 600.0
# Generations whose versions are remembered: runs of older ones are over.
_REMEMBERED = 64
# An engine begins with a header that has digests of everything after it.
_HEADER = 4096


@dataclass(frozen=True)
class Answer:
    """Outputs of one run, and what they were computed from."""

    outputs: list[Any]
    """Arrays of NumPy, in the order of the engine's outputs."""
    version: int
    """Of the weights: counts up with each publication; 0 for those that the engine file brought."""
    replica: str
    """Which replica answered."""


class Replica:
    """A deployment class around one engine; :func:`application` makes a deployment of it.

    A subclass may translate requests: it overrides ``__call__`` and uses :meth:`run` or :meth:`run_async`.

    Args:
        engine: path of the engine file, on each node.
        threads: of a run; by default as many as the engine finds good.
        device: ``cpu`` or ``cuda:N``.
        workers: runs at a time; requests beyond wait.

    """

    def __init__(
        self,
        engine: str | PathLike[str],
        *,
        threads: int | None = None,
        device: str = "cpu",
        workers: int = 1,
    ) -> None:
        context = serve.get_replica_context()
        model = Model.load(engine, threads, device)
        self._names = [name for name, _ in model.inputs]
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="regraft-run")
        with open(engine, "rb") as file:
            identity = hashlib.blake2b(file.read(_HEADER), digest_size=16).hexdigest()
        ledger = ledger_of(context.app_name, context.deployment)
        self._member = Member(model, context.replica_id.unique_id, identity, ledger)
        self._member.join()

    def check_health(self) -> None:
        """Has Ray Serve replace a replica that cannot take the newest weights."""
        if self._member.trouble:
            raise RuntimeError(self._member.trouble)

    async def __call__(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Answer:
        """Runs the engine once.

        Raises:
            InputError: when the inputs do not fit.

        """
        return await self.run_async(inputs)

    async def run_async(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Answer:
        """As :meth:`run`, on a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.run, inputs)

    def run(self, inputs: Sequence[Any] | Mapping[str, Any]) -> Answer:
        """Runs the engine once, on one generation from start to end.

        Args:
            inputs: arrays in their order, or by their names.

        Raises:
            InputError: when they do not fit.

        """
        return self._member.run(self._ordered(inputs))

    @property
    def version(self) -> int:
        """Of the weights that serve here."""
        return self._member.version

    def _ordered(self, inputs: Any) -> list[Any]:
        if isinstance(inputs, Mapping):
            if inputs.keys() != set(self._names):
                expected, found = ", ".join(self._names), ", ".join(map(str, inputs))
                raise InputError(f"expected the inputs {expected}, found {found}")
            return [inputs[name] for name in self._names]
        if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)):
            return list(inputs)
        raise InputError(
            f"expected a list of arrays, or arrays by name, found {type(inputs).__name__}\n"
            "  help: for requests over HTTP, a subclass of Replica makes arrays of their bodies"
        )


def ledger_of(app: str, deployment: str) -> Any:
    """The ledger of a deployment; the first who asks makes it."""
    options = {
        "name": ledger_name(app, deployment),
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "max_restarts": -1,
        "num_cpus": 0,
        "max_concurrency": 1000,
    }
    return ray.remote(Ledger).options(**options).remote()


class Member:
    """The weights of a replica, as its ledger sees them."""

    def __init__(self, model: Model, name: str, engine: str, ledger: Any) -> None:
        self.name, self.engine = name, engine
        self.version = 0
        self._model, self._ledger = model, ledger
        self.trouble = ""
        self._changing = threading.Lock()
        # Whether the newest weights at the time of joining serve: what the ledger asks for is done on top
        # of them.
        self._has_joined = threading.Event()
        self._versions = {model.generation or 0: 0}
        self._staged: tuple[int, Staged] | None = None
        # One at a time: two stages would take the memory of both.
        self._work = ThreadPoolExecutor(1, thread_name_prefix="regraft-stage")
        self._tickets: dict[str, Future[Any]] = {}
        _MEMBERS[name] = self

    def run(self, inputs: list[Any]) -> Answer:
        """One run, with the version of the weights that it saw."""
        outputs, generation = self._model.run_with_generation(inputs)
        return Answer([np.asarray(output) for output in outputs], self._versions[generation], self.name)

    def join(self) -> None:
        """Takes the newest weights, and a place in the ledger."""
        self._catch_up(ray.get_runtime_context().current_actor)
        threading.Thread(target=self._pulse, name="regraft-pulse", daemon=True).start()

    def stage(self, order: Order, buckets: Sequence[Bytes]) -> Ready:
        """Makes a generation, which does not serve yet."""
        if not self._has_joined.wait(_PATIENCE):
            raise RuntimeError("the replica has not got the weights before yet")
        return self._stage(order, buckets)

    def _stage(self, order: Order, buckets: Sequence[Bytes]) -> Ready:
        with self._changing:
            self._staged = None
            weights = over(Manifest.from_json(order.manifest), buckets)
            staged = self._model.stage(weights, **order.options)
            digest = staged.weights_digest()
            self._staged = order.version, staged
        return Ready(digest)

    def publish(self, version: int) -> None:
        """Makes what was staged serve; what serves already is not an error, so that it can be said again."""
        with self._changing:
            if self.version == version:
                return
            if self._staged is None or self._staged[0] != version:
                raise RuntimeError(f"version {version} is not staged here")
            staged, self._staged = self._staged[1], None
            # Before anyone can run it.
            self._versions[staged.generation] = version
            staged.publish()
            self.version = version
            while len(self._versions) > _REMEMBERED:
                del self._versions[next(iter(self._versions))]

    def discard(self) -> None:
        """Lets go of what is staged."""
        with self._changing:
            self._staged = None

    def export(self) -> tuple[str, list[Bytes]]:
        """All weights that serve, for a ledger that lost them."""
        with self._changing:
            arrays = {source.name: self._model.source(source.name) for source in self._model.sources}
        lost = [name for name, array in arrays.items() if array is None]
        if lost:
            raise RuntimeError(f"the weights were released: {', '.join(lost[:3])}")
        return packed(arrays)

    def _catch_up(self, me: Any) -> None:
        # The ledger does not count on this replica before it has joined, so nothing waits for it meanwhile.
        self._has_joined.clear()
        joined = self._ledger.join.remote(self.name, self.engine, self.version, me)
        newest, orders, blocks = ray.get(joined, timeout=_PATIENCE)
        for order, references in zip(orders, blocks, strict=True):
            self._stage(order, ray.get(references, timeout=_PATIENCE))
            self.publish(order.version)
        with self._changing:
            # Of an engine that is new here, what its file brought is the newest.
            self._versions[self._model.generation or 0] = self.version = newest
        self._has_joined.set()

    def _pulse(self) -> None:
        """Tells the ledger that this replica is there: one that was started again knows nobody, and one
        that could not reach this replica for a while went on without it.
        """
        me = ray.get_runtime_context().current_actor
        while True:
            time.sleep(_PULSE)
            try:
                pulse = self._ledger.pulse.remote(self.name, self.engine, self.version, me)
                has_place = ray.get(pulse, timeout=_PATIENCE)
                # The second where the last try to catch up failed.
                if not has_place or not self._has_joined.is_set():
                    self._catch_up(me)
                self.trouble = ""
            except (RegraftError, RuntimeError) as error:
                self.trouble = f"the newest weights cannot be taken: {error}"
            except Exception:
                # A ledger that is being started again does not answer; the next word reaches it.
                continue

    def begin(self, ticket: str, work: str, *arguments: Any) -> None:
        """Begins a long operation, once for each ticket; :meth:`look` returns its outcome."""
        if ticket in self._tickets:
            return
        self._tickets = {known: future for known, future in self._tickets.items() if not future.done()}
        future = self._work.submit(getattr(self, work), *arguments)
        if ticket:
            self._tickets[ticket] = future

    def look(self, ticket: str) -> Any:
        """The outcome of a ticket; ``None`` while it is being worked on."""
        future = self._tickets.get(ticket)
        if future is None:
            return Failure("nothing was begun under this ticket")
        if not future.done():
            return None
        error = future.exception()
        if error is not None:
            return Failure(str(error) or type(error).__name__)
        outcome = future.result()
        if not isinstance(outcome, Ready):
            # All weights: not kept for the case that the answer is lost on its way.
            del self._tickets[ticket]
        return outcome


_MEMBERS: dict[str, Member] = {}


def packed(weights: Any) -> tuple[str, list[Bytes]]:
    """The manifest and the blocks of weights."""
    tensors = views(weights)
    manifest = Manifest.of(tensors, limit=1 << 28)
    buckets = [np.zeros(size, np.uint8) for size in manifest.buckets]
    fill(manifest, tensors, buckets)
    return manifest.to_json(), buckets


# What the ledger has a replica's process do. It runs on the loop that requests come through: nothing here
# takes long.


def begin(_: Any, name: str, ticket: str, work: str, order: Order | None, *buckets: Bytes) -> None:
    """Begins to stage an order, or to export."""
    arguments = () if order is None else (order, buckets)
    _MEMBERS[name].begin(ticket, work, *arguments)


def look(_: Any, name: str, ticket: str) -> Any:
    """The outcome."""
    return _MEMBERS[name].look(ticket)


def version_of(_: Any, name: str) -> int:
    """Which weights serve."""
    return _MEMBERS[name].version


def publish(_: Any, name: str, version: int) -> None:
    """Makes what was staged serve."""
    _MEMBERS[name].publish(version)


def discard(_: Any, name: str) -> None:
    """Lets go of what is staged, once it is."""
    _MEMBERS[name].begin("", "discard")
