"""How the ends of a group reach each other: messages through a store of the sender's process, and bytes from
device to device.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

# Public, but its types do not say so.
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

__all__ = ["Link", "until"]

# Seconds between two looks for a message: the first, and the longest. In between it is a part of the time
# that was waited.
_LOOK, _LONG_LOOK, _PART = 1e-4, 0.02, 0.02
# An address as it is broadcast.
_ADDRESS = 256


def until(timeout: float | None) -> float | None:
    """When so many seconds are over; ``None`` is never."""
    return None if timeout is None else time.monotonic() + timeout


class Link:
    """One end of a group.

    Messages are JSON under keys of a store (``torch.distributed.TCPStore``) that lives in the sender's
    process. Unlike collectives, they can be waited for in vain without breaking anything, and they end with
    the sender. Bytes move by broadcasts, which are begun only when all ends have said that they take part.

    Args:
        meeting: ``tcp://HOST:PORT``, where the sender listens, or a process group of which all ends are
            members.
        is_sender: whether this end is the sender, which has rank 0.
        rank: of this end, for an address; a process group knows it.
        size: how many ends there are, for an address; a process group knows it.
        device: where this end has its weights.
        timeout: seconds until all ends have come, and that a broadcast may take.
        host: where the sender listens, for a process group.

    Raises:
        TimeoutError: not all ends have come in time.
        ConnectionError: the sender cannot be reached, or is gone.
        ValueError: for ranks, sizes and addresses that cannot be.

    """

    def __init__(
        self,
        meeting: str | dist.ProcessGroup,
        is_sender: bool,
        rank: int | None,
        size: int | None,
        device: torch.device,
        timeout: float,
        host: str = "127.0.0.1",
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout: expected seconds, found {timeout}")
        if not isinstance(meeting, str):
            rank, size = dist.get_rank(meeting), dist.get_world_size(meeting)
        if rank is None or size is None or not 0 <= rank < size or size < 2 or is_sender != (rank == 0):
            raise ValueError(f"rank {rank} of {size}: expected 0 for the sender, from 1 on for receivers")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.rank, self.size, self.device = rank, size, device
        self._timeout = timeout
        self._end: str | None = None
        limit = time.monotonic() + timeout
        self._store: TCPStore | None = self._meet(meeting, host)
        self._transport, self._data = self._connect(self._store, limit)

    @property
    def transport(self) -> str:
        """``"nccl"`` from GPU to GPU, ``"ipc"`` on one GPU, ``"gloo"`` through memory of the host."""
        return self._transport

    @property
    def home(self) -> torch.device:
        """Where what travels lies."""
        return torch.device("cpu") if self.transport == "gloo" else self.device

    def check(self) -> None:
        """Raises what ended the group.

        Raises:
            ConnectionError: it was closed, or a broadcast failed.

        """
        if self._end is not None:
            raise ConnectionError(self._end)

    def close(self, reason: str) -> None:
        """Ends the group for this side, and gives back its memory and its port. Waits for nobody."""
        self._give_up(reason)
        self._store = None

    def _give_up(self, reason: str) -> None:
        if self._end is None:
            self._end = reason
            if self.transport == "nccl":
                # Not a shutdown, which may wait for ends that are gone.
                self._data.abort()
            self._data = None

    # -------------------------------------------------------------------------------------------- messages

    def tell(self, key: str, message: dict[str, Any] | str) -> None:
        """Leaves a message.

        Raises:
            ConnectionError: the sender is gone.

        """
        self._asked("set", key, message if isinstance(message, str) else json.dumps(message))

    def hear(self, key: str, limit: float | None) -> dict[str, Any] | None:
        """The message under a key, once it is there; ``None`` when it is not by then.

        Raises:
            ConnectionError: the sender is gone.

        """
        text = self.read(key, limit)
        return None if text is None else _message(text)

    def read(self, key: str, limit: float | None) -> bytes | None:
        """What is under a key, once it is there; ``None`` when it is not by then.

        Raises:
            ConnectionError: the sender is gone.

        """
        is_there = self._wait([key], limit, [])
        return bytes(self._asked("get", key)) if is_there else None

    def hear_all(self, key: str, limit: float | None) -> dict[int, dict[str, Any]]:
        """What receivers left under ``key/RANK``, once all have, or some have left, or at the limit."""
        ranks = range(1, self.size)
        keys = [f"{key}/{rank}" for rank in ranks]
        self._wait(keys, limit, ["left"])
        found = [rank for rank in ranks if self._asked("check", [f"{key}/{rank}"])]
        return {rank: _message(self._asked("get", f"{key}/{rank}")) for rank in found}

    def leave(self) -> None:
        """Tells the sender that this receiver is closed."""
        self.tell(f"left/{self.rank}", {})
        self.tell("left", {})

    def left(self) -> list[int]:
        """Ranks of receivers that were closed."""
        return [rank for rank in range(1, self.size) if self._asked("check", [f"left/{rank}"])]

    def forget(self, keys: Sequence[str]) -> None:
        """Removes messages."""
        for key in keys:
            self._asked("delete_key", key)

    def _wait(self, keys: list[str], limit: float | None, unless: list[str]) -> bool:
        """Waits until all keys are there, the limit is over, or a key that ends the wait is there; whether
        all are.
        """
        begin = time.monotonic()
        # Not a wait of the store, which cannot be interrupted, and writes warnings when it is in vain.
        while not self._asked("check", keys):
            now = time.monotonic()
            if (limit is not None and now >= limit) or (unless and self._asked("check", unless)):
                return False
            time.sleep(min(max(_LOOK, _PART * (now - begin)), _LONG_LOOK))
        return True

    def _asked(self, what: str, *args: Any) -> Any:
        if self._store is None:
            raise ConnectionError(self._end)
        try:
            return getattr(self._store, what)(*args)
        except RuntimeError as error:
            whose = "the store of this process" if self.rank == 0 else "the sender"
            raise ConnectionError(f"{whose} is gone: {error}") from error

    # ------------------------------------------------------------------------------------------- broadcasts

    def settle(self) -> None:
        """Waits until other processes may read on this GPU what was written before."""
        if self.transport == "ipc":
            torch.cuda.current_stream(self.device).synchronize()

    def broadcast(self, buckets: Sequence[torch.Tensor]) -> None:
        """Sends these bytes to all receivers, or takes the sender's. All ends must call it; it returns when
        they are there. On one GPU they are there already.

        Raises:
            ConnectionError: an end is gone, or took too long. The group is of no use then.

        """
        if self.transport == "ipc":
            return
        limit = time.monotonic() + self._timeout
        options = dist.BroadcastOptions()
        options.rootRank, options.timeout = 0, timedelta(seconds=self._timeout)
        try:
            works = [self._data.broadcast([bucket], options) for bucket in buckets if bucket.numel()]
            for work in works:
                work.wait()
            if self.transport == "nccl":
                self._wait_for_gpu(limit)
        except (RuntimeError, TimeoutError) as error:
            reason = f"weights could not be moved, an end is gone or too slow: {error}"
            self._give_up(f"{reason}\n  help: make a new group")
            raise ConnectionError(reason) from error

    def _wait_for_gpu(self, limit: float) -> None:
        """A kernel of NCCL waits forever for an end that is gone; the host looks after it."""
        over: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        over.record(torch.cuda.current_stream(self.device))
        while not over.query():
            if time.monotonic() >= limit:
                raise TimeoutError(f"a broadcast took more than {self._timeout:g} s")
            time.sleep(5e-5)

    # ---------------------------------------------------------------------------------------------- meeting

    def _meet(self, meeting: str | dist.ProcessGroup, host: str) -> TCPStore:
        if isinstance(meeting, str):
            address = urlsplit(meeting)
            if address.scheme != "tcp" or not address.hostname or not address.port:
                raise ValueError(f"expected tcp://HOST:PORT, found {meeting!r}")
            if self.rank == 0:
                return self._serve(address.hostname, address.port)
            return self._reach(address.hostname, address.port)
        if self.rank == 0:
            store = self._serve(host, 0)
            _tell_address(meeting, f"{store.host} {store.port}", self.device)
            return store
        host, port = _tell_address(meeting, "", self.device).split()
        return self._reach(host, int(port))

    def _serve(self, host: str, port: int) -> TCPStore:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Of a name that is both, receivers are more likely to give the address in IPv4.
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        # Not on all addresses of the machine, where PyTorch's would be.
        listening = socket.create_server(address[:2], family=family)
        host, port = listening.getsockname()[:2]
        return self._reach(host, port, is_master=True, master_listen_fd=listening.detach())

    def _reach(self, host: str, port: int, **options: Any) -> TCPStore:
        limit = timedelta(seconds=self._timeout)
        try:
            return TCPStore(host, port, timeout=limit, wait_for_workers=False, **options)
        except RuntimeError as error:
            raise ConnectionError(f"no sender is at {host}, port {port}: {error}") from error

    def _connect(self, known: TCPStore, limit: float) -> tuple[str, Any]:
        """Waits until all have come, and connects the devices."""
        if self._asked("add", f"taken/{self.rank}", 1) > 1:
            raise ValueError(f"rank {self.rank} is another's")
        self.tell(f"end/{self.rank}", {"device": _device_id(self.device)})
        devices = []
        for rank in range(self.size):
            message = self.hear(f"end/{rank}", limit)
            if message is None:
                raise TimeoutError(f"rank {rank} of {self.size} has not come within {self._timeout:g} s")
            devices.append(message.get("device"))
        if "cpu" not in devices and len(set(devices)) == 1:
            return "ipc", None
        # NCCL has no two ends on one device.
        is_direct = "cpu" not in devices and len(set(devices)) == len(devices)
        # A connection of its own, which is busy while a backend waits in it.
        store = PrefixStore("data", self._reach(known.host, known.port))
        if is_direct:
            return "nccl", self._nccl(store, limit)
        span = timedelta(seconds=self._timeout)
        try:
            return "gloo", dist.ProcessGroupGloo(store, self.rank, self.size, span)
        except RuntimeError as error:
            raise ConnectionError(f"the ends do not reach each other: {error}") from error

    def _nccl(self, store: PrefixStore, limit: float) -> Any:
        """Connects GPUs, and proves it by a first broadcast. NCCL waits forever for an end that is gone now,
        so a thread waits for it, which nobody waits for after the limit.
        """
        options = dist.ProcessGroupNCCL.Options()
        # PyTorch ends a process in which a broadcast takes longer: `broadcast` gives up before.
        options._timeout = timedelta(days=1)
        found: list[Any] = []

        def connect() -> None:
            try:
                with torch.cuda.device(self.device):
                    backend: Any = dist.ProcessGroupNCCL(store, self.rank, self.size, options)
                    backend.broadcast([torch.zeros(1, device=self.device)], dist.BroadcastOptions()).wait()
                    torch.cuda.current_stream().synchronize()
                found.append(backend)
            except RuntimeError as error:
                found.append(error)

        thread = threading.Thread(target=connect, name="regraft-nccl", daemon=True)
        thread.start()
        thread.join(max(limit - time.monotonic(), 0.0))
        if not found:
            raise TimeoutError(f"the GPUs of the group were not connected within {self._timeout:g} s")
        if isinstance(found[0], RuntimeError):
            raise ConnectionError(f"the GPUs of the group cannot be connected: {found[0]}") from found[0]
        return found[0]


def _message(text: bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _device_id(device: torch.device) -> str:
    if device.type != "cuda":
        return "cpu"
    return str(torch.cuda.get_device_properties(device).uuid)


def _tell_address(group: dist.ProcessGroup, address: str, device: torch.device) -> str:
    """The sender's address, by a broadcast in the group."""
    place = device if "cpu" not in str(dist.get_backend_config(group)) else torch.device("cpu")
    padded = address.encode().ljust(_ADDRESS)
    text = torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(place)
    dist.broadcast(text, dist.get_global_rank(group, 0), group=group)
    return bytes(text.cpu().numpy()).decode("ascii", "replace").strip()
