"""Weights from a training process to processes on other devices: NCCL between GPUs, CUDA IPC on one, gloo
where one of them is the CPU.

The trainer, on the first GPU:

.. code-block:: python

    from regraft.sync.group import GroupSender

    with GroupSender("tcp://127.0.0.1:29600", size=2, device="cuda:0") as sender:
        for step in range(steps):
            ...
            sender.send(model.state_dict(), tag=f"step {step}")

The process that generates, on the second:

.. code-block:: python

    from regraft.sync.group import GroupReceiver

    receiver = GroupReceiver("tcp://127.0.0.1:29600", rank=1, size=2, device="cuda:1")
    while True:
        receiver.refit(compiled)  # takes the next version
        ...

A version is copied into a few flat blocks on the sender's device and broadcast into as many on the devices of
the receivers, where a refit reads it; on the sender's own GPU it reads the sender's. Nothing passes through
the host. The ends are fixed, and each version goes to all: :meth:`GroupSender.send` waits until each receiver
has asked for it and has refitted, and raises what went wrong there.

Instead of an address, both may be given a process group of ``torch.distributed`` that they are members of.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import ProcessGroup

from regraft._regraft import Model, StateDict
from regraft.errors import Problem, WeightsError
from regraft.flat import Manifest
from regraft.sync.link import Link, until
from regraft.sync.receiver import PATIENCE, Applied, refit_next
from regraft.sync.sender import check_tag
from regraft.sync.tensors import Room, sources

if TYPE_CHECKING:
    from regraft.module import Module

__all__ = ["GroupReceiver", "GroupSender", "GroupUpdate"]

# A broadcast of so many bytes is as fast as a longer one, and takes no more memory than it must.
_BUCKET = 256 << 20
# Of an error, as the sender is told.
_REASON = 4000
# How long it waits at its end for receivers that wait for weights.
_FAREWELL = 0.5


class GroupSender:
    """Gives the weights of this process to a fixed number of others, each on a device of its own.

    Receivers meet the sender here: this returns when all have come. All ends on different GPUs: weights go
    from device to device by NCCL. All on one GPU: receivers read the sender's memory, by CUDA IPC. Otherwise
    weights pass through memory of the host, by gloo.

    Args:
        meeting: ``tcp://HOST:PORT``, an address of this machine where receivers find it, or a process group
            of which all ends are members and this process is the first.
        size: how many ends there are, this one included; of a process group, all its members.
        device: where weights are gathered, the device that the trainer has them on.
        timeout: seconds until all receivers have come, and that moving one version may take.
        host: an address of this machine that the other members of a process group reach.

    Raises:
        TimeoutError: not all receivers have come.
        ConnectionError: one is gone already.
        OSError: the address cannot be listened on.
        ValueError: for an address or a size that cannot be.

    Example:
        >>> with GroupSender("tcp://127.0.0.1:29600", size=2) as sender:  # doctest: +SKIP
        ...     sender.send(model.state_dict(), tag="step 1")
        1

    """

    def __init__(
        self,
        meeting: str | ProcessGroup,
        *,
        size: int | None = None,
        device: str | torch.device = "cpu",
        timeout: float = 60.0,
        host: str = "127.0.0.1",
    ) -> None:
        self._link = Link(meeting, True, 0, size, torch.device(device), timeout, host)
        self._lock = threading.Lock()
        self._room: Room | None = None
        # The round that the manifest was told in.
        self._manifest = 0
        self._round = 0
        self._version = 0
        # Messages of rounds that not all receivers are known to be past, and of those that they are.
        self._open: list[str] = []
        self._done: list[str] = []

    def __enter__(self) -> GroupSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> int:
        """Of what was sent last; 0 before."""
        return self._version

    @property
    def receivers(self) -> int:
        """How many there are."""
        return self._link.size - 1

    @property
    def transport(self) -> str:
        """``"nccl"`` from GPU to GPU, ``"ipc"`` on one GPU, ``"gloo"`` through memory of the host."""
        return self._link.transport

    def send(
        self,
        weights: Mapping[str, Any] | StateDict | str | PathLike[str],
        *,
        tag: str = "",
        timeout: float | None = 60.0,
    ) -> int:
        """Moves these weights to all receivers, and waits until each has refitted; gives their version.

        The weights may be changed when this returns. Memory of their size on the sender's device is kept for
        the next version.

        Args:
            weights: tensors by the names of ``state_dict()``, of PyTorch or NumPy, on any device.
            tag: what receivers are told beside the version.
            timeout: seconds to wait until all receivers ask for weights, and again until all have refitted;
                ``None`` waits as long as they take.

        Raises:
            WeightsError: for what is not a tensor; or a receiver could not take the version or refit with it:
                ``problems`` has the rank and the reason of each. Those keep what they had, the others serve
                the new version.
            TimeoutError: a receiver did not ask in time, then nothing was sent; or it has not said in time
                that it has refitted.
            ConnectionError: a receiver was closed, or is gone or too slow in the middle of a version; the
                group is of no use then.

        """
        check_tag(tag)
        with self._lock:
            self._link.check()
            given = sources(weights)
            manifest = Manifest.of(given, _BUCKET)
            room = self._room_for(manifest)
            self._announce(tag, timeout)
            is_agreed = False
            try:
                self._link.forget(self._done)
                self._done = []
                self._agree("ready", timeout, "has not asked for weights")
                # Not before: on one GPU receivers read this memory.
                room.fill(given)
                self._link.settle()
                is_agreed = True
            finally:
                self._link.tell(f"{self._round}/go", {"go": is_agreed})
            self._link.broadcast(room.buckets)
            self._version = self._round
            self._agree("done", timeout, "has not refitted")
            self._close_rounds()
            return self._version

    def close(self) -> None:
        """Ends the group: receivers that wait for weights are told, and a :meth:`send` on its way fails."""
        try:
            self._link.check()
            self._link.tell(f"{self._round + 1}/new", {"closed": True})
            # Until they have read it: the messages end with this process.
            self._link.hear_all("over", until(_FAREWELL))
        except ConnectionError:
            return
        finally:
            self._link.close("the group was closed")
            self._room = None

    def _room_for(self, manifest: Manifest) -> Room:
        """Memory for these tensors, of which receivers are told when it is new."""
        if self._room is not None and self._room.manifest == manifest:
            return self._room
        self._room = None  # freed before there is another
        room = Room(manifest, self._link.home)
        number, ranks = self._round + 1, range(1, self._link.size)
        if self._link.transport == "ipc":
            for rank in ranks:
                self._link.tell(f"handles/{number}/{rank}", {"buckets": room.handles()})
        self._link.tell(f"manifest/{number}", manifest.to_json())
        if self._manifest:
            # Receivers that are late may still read these.
            self._open += [f"manifest/{self._manifest}", *(f"handles/{self._manifest}/{r}" for r in ranks)]
        self._room, self._manifest = room, number
        return room

    def _announce(self, tag: str, timeout: float | None) -> None:
        self._round += 1
        number, ranks = self._round, range(1, self._link.size)
        self._open += [f"{number}/{what}" for what in ("new", "go")]
        self._open += [f"{number}/{what}/{rank}" for what in ("ready", "done") for rank in ranks]
        self._link.tell(f"{number}/new", {"tag": tag, "timeout": timeout, "manifest": self._manifest})

    def _agree(self, what: str, timeout: float | None, otherwise: str) -> None:
        """Waits for all receivers, and raises what they say is wrong."""
        answers = self._link.hear_all(f"{self._round}/{what}", until(timeout))
        refused = {rank: str(said["error"]) for rank, said in answers.items() if "error" in said}
        missing = [rank for rank in range(1, self._link.size) if rank not in answers]
        reasons = [f"  rank {rank}: {reason}" for rank, reason in refused.items()]
        if missing:
            left = self._link.left()
            reasons += [f"  rank {rank} {'was closed' if rank in left else otherwise}" for rank in missing]
            error = ConnectionError if left else TimeoutError
            after = "" if left else f" within {timeout:g} s"
            raise error("\n".join([f"not all receivers took round {self._round}{after}:", *reasons]))
        if refused:
            # All have answered: none comes back to this round.
            if what == "done":
                self._close_rounds()
            problems = [Problem("refused", f"rank {rank}", reason) for rank, reason in refused.items()]
            head = f"{len(refused)} of {self.receivers} receivers keep the weights that they had"
            raise WeightsError("\n".join([head, *reasons]), problems=problems)

    def _close_rounds(self) -> None:
        """All receivers are past all rounds: their messages go while the next one is waited for."""
        self._done += self._open
        self._open = []


class GroupUpdate:
    """A version of the weights on this end's device. It stays as it is until :meth:`release`, or the end of a
    ``with`` block, which tells the sender how it went.
    """

    def __init__(self, receiver: GroupReceiver, version: int, tag: str, room: Room) -> None:
        self.version = version
        """Counts up with each that is sent."""
        self.tag = tag
        """What the trainer calls it."""
        self._receiver, self._room = receiver, room
        self._is_released = False

    @property
    def manifest(self) -> Manifest:
        """Which tensors there are, and where."""
        return self._room.manifest

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors, for a refit. They are read in place.

        Raises:
            ValueError: after the release.

        """
        if self._is_released:
            raise ValueError("these weights were released: the next ones are written there")
        return dict(self._room.tensors)

    def release(self, error: BaseException | None = None) -> None:
        """Lets go of the memory, and tells the sender that this version serves, or why it does not. What was
        taken from :attr:`weights` must not be used any more.

        Raises:
            ConnectionError: the sender is gone.

        """
        if not self._is_released:
            self._is_released = True
            self._receiver._release(self.version, error)

    def __enter__(self) -> GroupUpdate:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.release(error)
        except ConnectionError:
            # What happened in the block says more.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"regraft.sync.group.GroupUpdate(version {self.version}, {self.tag!r})"


class GroupReceiver:
    """Takes weights from a :class:`GroupSender`.

    Args:
        meeting: the ``tcp://HOST:PORT`` of the sender, or a process group of which all ends are members and
            the sender is the first.
        rank: which of the receivers this is, from 1; in a process group, as there.
        size: how many ends there are, the sender included; of a process group, all its members.
        device: where weights arrive: the device of the engine.
        timeout: seconds until all ends have come, and that moving one version may take.

    Raises:
        TimeoutError: not all ends have come.
        ConnectionError: the sender is not there.
        ValueError: for a rank that is another's, or an address or a size that cannot be.

    Example:
        >>> with receiver.next() as update:  # doctest: +SKIP
        ...     compiled.refit(update.weights)

    """

    def __init__(
        self,
        meeting: str | ProcessGroup,
        *,
        rank: int | None = None,
        size: int | None = None,
        device: str | torch.device = "cpu",
        timeout: float = 60.0,
    ) -> None:
        self._link = Link(meeting, False, rank, size, torch.device(device), timeout)
        self._lock = threading.Lock()
        self._room: Room | None = None
        self._manifest = -1
        self._held: GroupUpdate | None = None
        self._round = 0
        self._version = 0

    def __enter__(self) -> GroupReceiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> int:
        """Of what :meth:`next` gave last; 0 before."""
        return self._version

    @property
    def transport(self) -> str:
        """``"nccl"`` from GPU to GPU, ``"ipc"`` on one GPU, ``"gloo"`` through memory of the host."""
        return self._link.transport

    def close(self) -> None:
        """Leaves the group, which is of no use to the others then; a :meth:`next` that waits fails."""
        try:
            self._link.check()
            self._link.leave()
        except ConnectionError:
            return
        finally:
            self._link.close("the receiver was closed")
            self._room = None

    def next(self, *, timeout: float | None = None) -> GroupUpdate:
        """The next version, once the trainer sends it. The trainer waits until it is released.

        Args:
            timeout: seconds to wait until it is sent.

        Raises:
            TimeoutError: there is none by then. It may be asked for again.
            ConnectionError: the sender is gone, or another end is in the middle of a version.
            WeightsError: it sends what is not a weights.
            RuntimeError: there is no memory for them. The trainer is told.
            ValueError: the last version was not released.

        """
        with self._lock:
            self._link.check()
            if self._held is not None:
                raise ValueError(f"{self._held!r} must be released first")
            limit = until(timeout)
            while True:
                number = self._round + 1
                message = self._link.hear(f"{number}/new", limit)
                if message is None:
                    raise TimeoutError(f"no weights newer than version {self._version} within {timeout} s")
                taken = self._take(number, message)
                if taken is not None:
                    self._held, self._version = taken, number
                    return taken

    def refit(self, target: Module | Model, *, timeout: float | None = None, **options: Any) -> Applied:
        """Takes the next version, refits a compiled module or model with it, and tells the trainer.

        Args:
            target: what is refitted.
            timeout: seconds to wait, see :meth:`next`.
            **options: further arguments of its ``refit``.

        Raises:
            TimeoutError: none was sent by then.
            WeightsError: they do not fit; nothing is changed then, and the trainer's ``send`` raises it too.
            ConnectionError: the sender is gone.

        """
        return refit_next(self, target, timeout, options)

    def _take(self, number: int, message: dict[str, Any]) -> GroupUpdate | None:
        """A version that was announced; ``None`` when the sender gave it up."""
        match message:
            case {"closed": True}:
                self._link.tell(f"over/{self._link.rank}", {})
                reason = "the sender is gone: it closed the group"
                self._link.close(reason)
                raise ConnectionError(reason)
            case {"tag": str(tag), "timeout": int() | float() | None as patience, "manifest": int(manifest)}:
                pass
            case _:
                raise WeightsError("the sender speaks another language than this version")
        answer: dict[str, Any] = {}
        problem: Exception | None = None
        try:
            room = self._room_for(manifest)
        except (WeightsError, RuntimeError) as error:
            problem, answer = error, {"error": _reason(error)}
        self._link.tell(f"{number}/ready/{self._link.rank}", answer)
        # The sender waits so long for the other receivers.
        go = self._link.hear(f"{number}/go", until(None if patience is None else patience + PATIENCE))
        if go is None:
            raise ConnectionError("the sender announced weights, and has not said whether it sends them")
        self._round = number
        if problem is not None:
            raise problem
        if go.get("go") is not True:
            return None
        try:
            self._link.broadcast(room.buckets)
        except ConnectionError as error:
            # The sender may have given all away before this end failed.
            with contextlib.suppress(ConnectionError):
                self._tell_done(number, error)
            raise
        return GroupUpdate(self, number, tag, room)

    def _room_for(self, manifest: int) -> Room:
        if self._room is None or self._manifest != manifest:
            self._room = None  # freed before there is another
            text = self._link.read(f"manifest/{manifest}", until(PATIENCE))
            if text is None:
                raise WeightsError("the sender announced a manifest that it did not send")
            known, handles = Manifest.from_json(text.decode("utf-8", "replace")), None
            if self._link.transport == "ipc":
                said = self._link.hear(f"handles/{manifest}/{self._link.rank}", until(PATIENCE))
                handles = (said or {}).get("buckets", ())
            self._room = Room(known, self._link.home, handles)
            self._manifest = manifest
        return self._room

    def _release(self, version: int, error: BaseException | None) -> None:
        self._held = None
        self._tell_done(version, error)

    def _tell_done(self, version: int, error: BaseException | None) -> None:
        answer = {} if error is None else {"error": _reason(error)}
        self._link.tell(f"{version}/done/{self._link.rank}", answer)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON]
