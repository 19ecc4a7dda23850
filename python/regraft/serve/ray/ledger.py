"""The ledger of a deployment: who its replicas are, and what the newest weights are."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from regraft.serve.ray.orders import Failure, Order, Ready

__all__ = ["Ledger"]

# How long a ledger that was started again waits for its replicas to tell of themselves.
_GRACE = 2.5
# Seconds for a replica that does not answer, until it is ended: it would go on serving old weights.
_PATIENCE = 10.0
# Publications of parts, after which all weights are taken together.
_MOST_PARTS = 16


@dataclass
class _Member:
    """A replica."""

    actor: Any
    engine: str
    version: int


@dataclass
class _Kept:
    """An order that was carried out, with its bytes in the object store, which this actor owns."""

    order: Order
    blocks: list[Any]


@dataclass
class _Line:
    """The weights of one engine: what makes them of those in its file."""

    kept: list[_Kept] = field(default_factory=list)
    is_lost: bool = False
    """They died with a ledger, and no replica could give them back."""


class Ledger:
    """An actor. Whatever changes goes through its lock, so that a replica joins before a publication or
    after it.
    """

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}
        self._lines: dict[str, _Line] = {}
        self._version = 0
        self._lock = asyncio.Lock()
        self._was_lost = ray.get_runtime_context().was_current_actor_reconstructed
        self._since = time.monotonic()

    async def join(
        self, name: str, engine: str, version: int, actor: Any
    ) -> tuple[int, list[Order], list[list[Any]]]:
        """A place for a replica; which version is the newest, and what the replica has to do for it.

        An engine that no replica had before begins with the weights of its file.
        """
        async with self._lock:
            await self._recover()
            line = self._line(engine)
            if line.is_lost and version != self._version:
                raise RuntimeError("the newest weights were lost with the ledger: publish all weights again")
            self._members[name] = _Member(actor, engine, self._version)
            kept = [] if version == self._version else line.kept
            return self._version, [one.order for one in kept], [one.blocks for one in kept]

    async def pulse(self, name: str, engine: str, version: int, actor: Any) -> bool:
        """A replica tells that it is there; whether it serves the newest weights and has its place."""
        if self._was_lost:
            self._members[name] = _Member(actor, engine, version)
            return True
        if self._lock.locked():
            # What is newest is being decided.
            return True
        known = self._members.get(name)
        # What it serves was confirmed when it published, or joined: a word that was sent before that and
        # comes after it is old. Without its place the replica would be left out of the next publication.
        if known is not None and self._version in (version, known.version):
            return True
        self._members.pop(name, None)
        return False

    async def publish(
        self, manifest: str, options: dict[str, Any], timeout: float, *buckets: Any
    ) -> dict[str, Any]:
        """Has all replicas stage these weights, and then publish them."""
        async with self._lock:
            await self._recover()
            blocks = [ray.put(bucket) for bucket in buckets]
            order = Order(self._version + 1, manifest, options)
            return await self._publish(order, blocks, timeout)

    async def status(self) -> dict[str, Any]:
        """What the newest weights are, and who serves them."""
        async with self._lock:
            await self._recover()
            versions, silent = await self._each(self._version_of)
            return {"version": self._version, "replicas": versions, "silent": silent}

    async def _version_of(self, name: str) -> int:
        version: int = await _call(self._members[name].actor, _PATIENCE, _calls().version_of, name)
        return version

    async def _publish(self, order: Order, blocks: list[Any], timeout: float) -> dict[str, Any]:
        staged, failed = await self._each(lambda name: self._stage(name, order, blocks, timeout))
        if not staged and not failed:
            failed = {"": "no replica is running; a publication needs one that tries the weights"}
        if not order.is_whole and any(line.is_lost for line in self._lines.values()):
            failed = {"": "weights were lost with a ledger that died: publish all of them, not a part"}
        digests: dict[str, set[str]] = {}
        for name, ready in staged.items():
            digests.setdefault(self._members[name].engine, set()).add(ready.digest)
        if not failed and any(len(different) > 1 for different in digests.values()):
            failed = {
                name: f"would serve {ready.digest[:16]}, unlike others" for name, ready in staged.items()
            }
        if failed:
            for name, member in self._members.items():
                member.actor.__ray_call__.remote(_calls().discard, name)
            return {"failed": failed, "of": len(self._members)}
        self._record(order, blocks, set(digests))
        published, lost = await self._each(lambda name: self._make_serve(name, order.version))
        for name in lost:
            # It would answer from old weights after everybody was told that none does.
            ray.kill(self._members.pop(name).actor)
        await self._shorten(timeout)
        return {"version": order.version, "published": sorted(published), "lost": lost}

    def _record(self, order: Order, blocks: list[Any], engines: set[str]) -> None:
        """From here on the weights are the newest: who joins gets them."""
        self._version = order.version
        # Engines of which no replica is left.
        self._lines = {engine: self._line(engine) for engine in engines}
        for line in self._lines.values():
            line.kept = [] if order.is_whole else line.kept
            line.kept.append(_Kept(order, blocks))
            line.is_lost = False

    async def _stage(self, name: str, order: Order, blocks: list[Any], timeout: float) -> Ready:
        outcome = await self._done(name, "stage", timeout, order, *blocks)
        if not isinstance(outcome, Ready):
            raise RuntimeError(f"no answer within {timeout:g} s")
        return outcome

    async def _make_serve(self, name: str, version: int) -> bool:
        member = self._members[name]
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                await _call(member.actor, _PATIENCE, _calls().publish, name, version)
                member.version = version
                return True
            except (ActorUnavailableError, GetTimeoutError, asyncio.TimeoutError):
                if time.monotonic() >= until:
                    raise RuntimeError(f"did not answer for {_PATIENCE:g} s when it was to publish") from None
                await asyncio.sleep(0.05)

    async def _done(self, name: str, work: str, timeout: float, order: Order | None, *blocks: Any) -> Any:
        """Has a replica do what takes time, and looks until it is done; `None` when it takes too long."""
        actor, ticket = self._members[name].actor, uuid.uuid4().hex
        until, pause = time.monotonic() + timeout, 0.002
        await _reach(actor, until, _calls().begin, name, ticket, work, order, *blocks)
        while True:
            outcome = await _reach(actor, until, _calls().look, name, ticket)
            if isinstance(outcome, Failure):
                raise RuntimeError(outcome.reason)
            if outcome is not None or time.monotonic() >= until:
                return outcome
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.05)

    async def _each(self, work: Callable[[str], Awaitable[Any]]) -> tuple[dict[str, Any], dict[str, str]]:
        """Does it with all replicas at a time; returns the results and the errors. Those that died are
        forgotten: a dead replica answers no request, and the one in its place joins with the newest weights.
        """
        names = list(self._members)
        outcomes = await asyncio.gather(*(work(name) for name in names), return_exceptions=True)
        done: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, ActorDiedError):
                del self._members[name]
            elif isinstance(outcome, BaseException):
                failed[name] = str(outcome) or type(outcome).__name__
            else:
                done[name] = outcome
        return done, failed

    def _line(self, engine: str) -> _Line:
        return self._lines.setdefault(engine, _Line())

    async def _shorten(self, timeout: float) -> None:
        """Puts all weights in the place of many parts."""
        for engine, line in self._lines.items():
            if len(line.kept) > _MOST_PARTS:
                whole = await self._whole(engine, timeout)
                line.kept = line.kept if whole is None else [whole]

    async def _whole(self, engine: str, timeout: float) -> _Kept | None:
        """All newest weights of an engine, from a replica that serves them."""
        for name, member in list(self._members.items()):
            if member.engine != engine or member.version != self._version:
                continue
            try:
                manifest, buckets = await self._done(name, "export", timeout, None)
            except (RuntimeError, TypeError, ray.exceptions.RayError):
                continue
            return _Kept(Order(self._version, manifest), [ray.put(bucket) for bucket in buckets])
        return None

    async def _recover(self) -> None:
        """After a start in the place of a ledger that died: learns from the replicas what was known."""
        if not self._was_lost:
            return
        await asyncio.sleep(max(self._since + _GRACE - time.monotonic(), 0))
        self._version = max((member.version for member in self._members.values()), default=0)
        if self._version:
            for engine in {member.engine for member in self._members.values()}:
                whole = await self._whole(engine, 600.0)
                if whole is None:
                    self._line(engine).is_lost = True
                else:
                    self._line(engine).kept = [whole]
                    await self._bring_up(engine, whole)
        self._was_lost = False

    async def _bring_up(self, engine: str, whole: _Kept) -> None:
        """Those that were not reached before the ledger died."""
        for name, member in list(self._members.items()):
            if member.engine == engine and member.version != self._version:
                try:
                    await self._stage(name, replace(whole.order), whole.blocks, 600.0)
                    await self._make_serve(name, self._version)
                except (RuntimeError, ray.exceptions.RayError):
                    # It says that it is there, is told that it is behind, and joins.
                    self._members.pop(name, None)


async def _call(actor: Any, timeout: float, work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.wait_for(_result(actor.__ray_call__.remote(work, *arguments)), timeout)


async def _reach(actor: Any, until: float, work: Callable[..., Any], *arguments: Any) -> Any:
    """As `_call`, again as long as it is not known whether the actor is there. What is asked may be asked
    twice.
    """
    while True:
        try:
            return await _call(actor, max(until - time.monotonic(), 0.001), work, *arguments)
        except ActorUnavailableError:
            if time.monotonic() >= until:
                raise
            await asyncio.sleep(0.05)


async def _result(reference: Any) -> Any:
    return await reference


def _calls() -> Any:
    # It imports this module.
    from regraft.serve.ray import replica

    return replica
