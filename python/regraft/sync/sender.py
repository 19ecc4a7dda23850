"""The trainer's end."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np

from regraft._regraft import StateDict
from regraft.flat import Manifest, fill, views
from regraft.sync.memory import Region, check_peer, sealed

__all__ = ["Sender", "check_tag"]

_MESSAGE = 1 << 16
# What one message can carry.
_BUCKETS = 200
_TAG = 1000


def check_tag(tag: str) -> None:
    """Raises for a tag that is longer than messages carry.

    Raises:
        ValueError: for such a tag.

    """
    if len(tag) > _TAG:
        raise ValueError(f"tag: expected at most {_TAG} characters, found {len(tag)}")


@dataclass(eq=False)
class _Slot:
    """Memory for one version of the weights."""

    number: int
    region: Region
    version: int = 0
    tag: str = ""
    is_being_filled: bool = False


@dataclass(eq=False)
class _Peer:
    """A receiver."""

    connection: socket.socket
    process: int
    wants: int | None = None
    """It waits for a version newer than this one."""
    holds: set[int] = field(default_factory=set)
    """Numbers of the slots that it reads."""
    knows: set[int] = field(default_factory=set)
    """Numbers of the slots that it has mapped."""


class Sender:
    """Gives the weights of this process to others of the same machine and user.

    Any number of receivers may come and go; one that comes gets the newest version at once. A receiver that
    does not ask holds nothing up.

    Args:
        path: where receivers find it: a socket that is made there, and removed by :meth:`close`.
        depth: how many versions there is memory for. With two, one is written while the one before is read.

    Raises:
        OSError: when the socket cannot be made, or another process listens there.

    Example:
        >>> with Sender(path) as sender:  # doctest: +SKIP
        ...     sender.send(model.state_dict(), tag="step 1")
        1

    """

    def __init__(self, path: str | PathLike[str], *, depth: int = 2) -> None:
        if depth < 2:
            raise ValueError(f"depth: expected at least 2, found {depth}")
        self._path, self._depth = os.fspath(path), depth
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._slots: list[_Slot] = []
        self._newest: _Slot | None = None
        self._made = 0
        self._version = 0
        self._peers: dict[int, _Peer] = {}
        self._is_closed = False
        self._listener = _listen(self._path)
        self._wake_here, self._wake_there = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="regraft-sync", daemon=True)
        self._thread.start()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> int:
        """Of what was sent last; 0 before."""
        return self._version

    @property
    def receivers(self) -> int:
        """How many are connected."""
        with self._changed:
            return len(self._peers)

    def send(
        self,
        weights: Mapping[str, Any] | StateDict | str | PathLike[str],
        *,
        tag: str = "",
        timeout: float | None = 60.0,
    ) -> int:
        """Copies these weights to where receivers read them; gives their version.

        Args:
            weights: tensors by the names of ``state_dict()``, of PyTorch or NumPy, on a CPU or GPU.
            tag: what receivers are told beside the version.
            timeout: seconds to wait until receivers release memory that is needed.

        Raises:
            TimeoutError: a receiver reads a version that is in the way for longer.
            WeightsError: for what is not a tensor.

        """
        check_tag(tag)
        with self._sending:
            tensors = views(weights)
            manifest = Manifest.of(tensors)
            if len(manifest.buckets) > _BUCKETS:
                raise ValueError(f"weights of {manifest.nbytes} bytes: more than can be sent at a time")
            slot = self._free_slot(manifest, timeout)
            try:
                fill(manifest, tensors, slot.region.buckets)
            except BaseException:
                with self._changed:
                    slot.is_being_filled = False
                raise
            with self._changed:
                self._version += 1
                slot.version, slot.tag, slot.is_being_filled = self._version, tag, False
                self._newest = slot
                for peer in list(self._peers.values()):
                    self._answer(peer)
                return self._version

    def close(self) -> None:
        """Stops. Receivers that have a version keep it until they release it."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._wake_there.send(b"x")
            self._changed.notify_all()
        self._thread.join()

    def _free_slot(self, manifest: Manifest, timeout: float | None) -> _Slot:
        """A slot that is not being read, with memory for this manifest; it is marked as being filled."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                if self._is_closed:
                    raise ValueError("the sender was closed")
                held = {number for peer in self._peers.values() for number in peer.holds}
                free = [s for s in self._slots if s is not self._newest and s.number not in held]
                slot = next((s for s in free if s.region.manifest == manifest), None)
                if slot is None and (free or len(self._slots) < self._depth):
                    if len(self._slots) >= self._depth:
                        self._slots.remove(free[0])
                        free[0].region.close()
                    self._made += 1
                    slot = _Slot(self._made, Region.create(manifest))
                    self._slots.append(slot)
                if slot is not None:
                    slot.is_being_filled = True
                    return slot
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    who = ", ".join(str(peer.process) for peer in self._peers.values() if peer.holds)
                    raise TimeoutError(
                        f"receivers still read older weights after {timeout:g} s: process {who}"
                    )
                self._changed.wait(left)

    def _serve(self) -> None:
        """Takes connections, and what receivers say, until the sender is closed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_here, selectors.EVENT_READ)
            while not self._is_closed:
                for key, _ in selector.select():
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.data, _Peer):
                        with self._changed:
                            if not self._hear(key.data):
                                selector.unregister(key.fileobj)
                                self._lose(key.data)
        with self._changed:
            for peer in list(self._peers.values()):
                self._lose(peer)
            for slot in self._slots:
                slot.region.close()
            self._slots.clear()
        for end in (self._listener, self._wake_here, self._wake_there):
            end.close()
        _remove_socket(self._path)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        try:
            process = check_peer(connection)
            connection.setblocking(False)
        except OSError:
            connection.close()
            return
        peer = _Peer(connection, process)
        with self._changed:
            self._peers[connection.fileno()] = peer
        selector.register(connection, selectors.EVENT_READ, peer)

    def _lose(self, peer: _Peer) -> None:
        """Forgets a receiver; what it held is free."""
        self._peers.pop(peer.connection.fileno(), None)
        peer.connection.close()
        peer.holds.clear()
        peer.wants = None
        self._changed.notify_all()

    def _hear(self, peer: _Peer) -> bool:
        """Does what a receiver says; whether it is still there."""
        try:
            text = peer.connection.recv(_MESSAGE)
            message = json.loads(text) if text else None
        except BlockingIOError:
            return True
        except (OSError, ValueError, RecursionError):
            return False
        match message:
            case {"want": int(version)}:
                peer.wants = version
                return self._answer(peer)
            case {"release": int(number)}:
                peer.holds.discard(number)
                self._changed.notify_all()
                return True
            case {"cancel": True}:
                peer.wants = None
                return _tell(peer, {"cancelled": True})
            case _:
                return False

    def _answer(self, peer: _Peer) -> bool:
        """Tells a receiver of the newest version, when it waits for one."""
        slot = self._newest
        if slot is None or peer.wants is None or slot.version <= peer.wants:
            return True
        alive = {slot.number for slot in self._slots}
        message: dict[str, Any] = {"version": slot.version, "tag": slot.tag, "slot": slot.number}
        message["gone"] = sorted(peer.knows - alive)
        files: list[int] = []
        if slot.number not in peer.knows:
            text = np.frombuffer(slot.region.manifest.to_json().encode(), np.uint8)
            manifest = sealed("regraft-manifest", text.nbytes)
            os.pwrite(manifest, text.tobytes(), 0)
            files = [manifest, *slot.region.files]
        try:
            is_told = _tell(peer, message, files)
        finally:
            if files:
                os.close(files[0])
        if is_told:
            peer.wants = None
            peer.holds.add(slot.number)
            peer.knows = (peer.knows & alive) | {slot.number}
        return is_told


def _tell(peer: _Peer, message: dict[str, Any], files: list[int] | None = None) -> bool:
    """Whether it could be told: a receiver that does not read its few messages is none."""
    try:
        socket.send_fds(peer.connection, [json.dumps(message).encode()], files or [])
    except OSError:
        return False
    return True


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if _is_socket(path):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
                try:
                    other.connect(path)
                except ConnectionRefusedError:
                    # Of a process that is gone.
                    os.unlink(path)
                else:
                    raise FileExistsError(f"{path}: another process sends there")
        listener.bind(path)
        os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(16)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _remove_socket(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
