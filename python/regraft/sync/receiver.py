"""The end that runs the weights."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from regraft._regraft import Model, StateDict
from regraft.errors import WeightsError
from regraft.flat import Manifest, over
from regraft.report import RefitReport
from regraft.sync.memory import Region, check_peer, open_manifest

if TYPE_CHECKING:
    from regraft.module import Module
    from regraft.sync.group import GroupReceiver

__all__ = ["PATIENCE", "Applied", "Receiver", "Update", "refit_next"]

_MESSAGE = 1 << 16
_FILES = 253
# How long the trainer may take to answer what it always answers.
PATIENCE = 60.0


class Update:
    """A version of the weights where the trainer wrote it. It stays as it is until :meth:`release`, or the
    end of a ``with`` block; the trainer needs the memory again then.
    """

    def __init__(self, receiver: Receiver, slot: int, version: int, tag: str, region: Region) -> None:
        self.version = version
        """Counts up with each that is sent."""
        self.tag = tag
        """What the trainer calls it."""
        self._receiver, self._slot, self._region = receiver, slot, region
        self._is_released = False

    @property
    def manifest(self) -> Manifest:
        """Which tensors there are, and where."""
        return self._region.manifest

    @property
    def weights(self) -> StateDict:
        """The tensors, for a refit. They are read in place.

        Raises:
            ValueError: after the release.

        """
        if self._is_released:
            raise ValueError("these weights were released: the trainer may have written others there")
        return over(self._region.manifest, self._region.buckets)

    def release(self) -> None:
        """Lets go of the memory. What was taken from :attr:`weights` must not be used any more."""
        if not self._is_released:
            self._is_released = True
            self._receiver._release(self._slot)

    def __enter__(self) -> Update:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"regraft.sync.Update(version {self.version}, {self.tag!r})"


@dataclass(frozen=True)
class Applied:
    """A version that was refitted."""

    version: int
    tag: str
    report: RefitReport
    waited: float
    """Seconds until the trainer had sent it."""
    seconds: float
    """Seconds that the refit took."""


def refit_next(
    receiver: Receiver | GroupReceiver, target: Module | Model, timeout: float | None, options: dict[str, Any]
) -> Applied:
    """Takes the next version, refits with it, and releases it."""
    begin = time.perf_counter()
    with receiver.next(timeout=timeout) as update:
        came = time.perf_counter()
        report = target.refit(update.weights, **options)
        done = time.perf_counter()
    return Applied(update.version, update.tag, report, came - begin, done - came)


class Receiver:
    """Takes weights from a :class:`Sender` of another process of this machine.

    Args:
        path: the socket of the sender.
        timeout: seconds to wait for a sender that is not there yet.

    Raises:
        OSError: there is none, or it belongs to another user.

    Example:
        >>> with receiver.next() as update:  # doctest: +SKIP
        ...     compiled.refit(update.weights)

    """

    def __init__(self, path: str | PathLike[str], *, timeout: float = 60.0) -> None:
        self._connection = _connect(os.fspath(path), timeout)
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._regions: dict[int, Region] = {}
        self._version = 0

    @property
    def version(self) -> int:
        """Of what :meth:`next` gave last; 0 before."""
        return self._version

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; the sender may write to what this process held."""
        self._connection.close()

    def next(self, *, timeout: float | None = None) -> Update:
        """The newest version, once it is newer than the last one that this gave. Versions between are left
        out.

        Args:
            timeout: seconds to wait.

        Raises:
            TimeoutError: there is none by then.
            ConnectionError: the sender is gone.
            WeightsError: it sends what is not a weights.

        """
        with self._lock:
            self._tell({"want": self._version})
            message, files = self._hear(timeout)
            if message is None:
                self._tell({"cancel": True})
                message, files = self._hear(PATIENCE)
                if message is None or "cancelled" in message:
                    raise TimeoutError(f"no weights newer than version {self._version} within {timeout} s")
                # They came just then: the answer to the other message follows.
                self._hear(PATIENCE)
            return self._update(message, files)

    def refit(self, target: Module | Model, *, timeout: float | None = None, **options: Any) -> Applied:
        """Waits for newer weights, refits a compiled module or model with them, and releases them.

        Args:
            target: what is refitted.
            timeout: seconds to wait, see :meth:`next`.
            **options: further arguments of its ``refit``.

        Raises:
            TimeoutError: there are no newer ones by then.
            WeightsError: they do not fit; nothing is changed then.

        """
        return refit_next(self, target, timeout, options)

    def _update(self, message: dict[str, Any], files: list[int]) -> Update:
        try:
            match message:
                case {"version": int(version), "tag": str(tag), "slot": int(slot), "gone": list(gone)}:
                    for number in gone:
                        self._regions.pop(number, None)
                case _:
                    raise WeightsError("the sender speaks another language than this version")
            if files:
                taken, files = files, []
                self._regions[slot] = _mapped(taken)
            if slot not in self._regions:
                raise WeightsError("the sender announced memory that it did not send")
        finally:
            for file in files:
                os.close(file)
        self._version = version
        return Update(self, slot, version, tag, self._regions[slot])

    def _release(self, slot: int) -> None:
        # One that is gone writes nothing there any more.
        with contextlib.suppress(ConnectionError):
            self._tell({"release": slot})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            with self._telling:
                self._connection.send(json.dumps(message).encode())
        except OSError as error:
            raise ConnectionError(f"the sender is gone: {error}") from error

    def _hear(self, timeout: float | None) -> tuple[dict[str, Any] | None, list[int]]:
        """A message with the files that came with it; ``None`` when there was none in time."""
        try:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                return None, []
            flags = socket.MSG_CMSG_CLOEXEC
            text, files, _, _ = socket.recv_fds(self._connection, _MESSAGE, _FILES, flags)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"the sender is gone: {error}") from error
        if not text:
            raise ConnectionError("the sender is gone: it closed the connection")
        try:
            message = json.loads(text)
        except ValueError:
            message = {}
        return message if isinstance(message, dict) else {}, list(files)


def _mapped(files: list[int]) -> Region:
    try:
        manifest = open_manifest(files[0])
    except WeightsError:
        for file in files[1:]:
            os.close(file)
        raise
    return Region.map(manifest, files[1:])


def _connect(path: str, timeout: float) -> socket.socket:
    until = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(path)
            check_peer(connection)
            return connection
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if time.monotonic() >= until:
                raise type(error)(f"{path}: no sender is there after {timeout:g} s") from error
        except OSError:
            connection.close()
            raise
        time.sleep(0.02)
