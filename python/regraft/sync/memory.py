"""Memory that two processes have mapped: anonymous files, which pass from one to the other over a socket."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import stat
import struct
import sys
from dataclasses import dataclass

import numpy as np

from regraft.errors import WeightsError
from regraft.flat import Bytes, Manifest

__all__ = ["Region", "check_peer", "open_manifest", "sealed"]

# A file of this memory keeps its size: who maps it can never be cut off.
_SEALS = 0x0001 | 0x0002 | 0x0004  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_ADD_SEALS, _GET_SEALS = 1033, 1034

if sys.platform != "linux":
    raise ImportError("regraft.sync needs Linux: weights pass in anonymous shared memory")


def sealed(name: str, size: int) -> int:
    """An anonymous file of this size, which keeps it."""
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        fcntl.fcntl(file, _ADD_SEALS, _SEALS)
    except OSError:
        os.close(file)
        raise
    return file


@dataclass
class Region:
    """Weights in shared memory: one anonymous file for each bucket of the manifest."""

    manifest: Manifest
    files: list[int]
    buckets: list[Bytes]

    @classmethod
    def create(cls, manifest: Manifest) -> Region:
        """New memory.

        Raises:
            OSError: when there is none.

        """
        files: list[int] = []
        try:
            for size in manifest.buckets:
                files.append(sealed("regraft-sync", size))
            return cls(
                manifest, files, [_mapped(f, n, True) for f, n in zip(files, manifest.buckets, strict=True)]
            )
        except OSError:
            for file in files:
                os.close(file)
            raise

    @classmethod
    def map(cls, manifest: Manifest, files: list[int]) -> Region:
        """The memory of another process, to be read. Takes the files over.

        Raises:
            WeightsError: when they are not what the manifest says.

        """
        try:
            if len(files) != len(manifest.buckets):
                raise WeightsError(f"{len(manifest.buckets)} buckets were announced, {len(files)} came")
            for file, size in zip(files, manifest.buckets, strict=True):
                _check_sealed(file, size)
            buckets = [_mapped(f, n, False) for f, n in zip(files, manifest.buckets, strict=True)]
        finally:
            for file in files:
                os.close(file)
        return cls(manifest, [], buckets)

    def close(self) -> None:
        """Closes the files. The memory is freed when it is mapped nowhere any more."""
        for file in self.files:
            os.close(file)
        self.files.clear()
        self.buckets.clear()


def _mapped(file: int, size: int, writable: bool) -> Bytes:
    if size == 0:
        return np.zeros(0, np.uint8)
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    # All pages at once: each one that a refit would find missing costs it an interruption.
    populate = 0 if writable else getattr(mmap, "MAP_POPULATE", 0x8000)
    return np.frombuffer(mmap.mmap(file, size, mmap.MAP_SHARED | populate, access), np.uint8)


def _check_sealed(file: int, size: int) -> None:
    about = os.fstat(file)
    try:
        seals = fcntl.fcntl(file, _GET_SEALS)
    except OSError:
        seals = 0
    if not stat.S_ISREG(about.st_mode) or about.st_size != size or seals & _SEALS != _SEALS:
        raise WeightsError(
            f"expected shared memory of {size} bytes that keeps its size, found something else"
        )


def open_manifest(file: int) -> Manifest:
    """Reads a manifest from an anonymous file, and closes it.

    Raises:
        WeightsError: when it holds none.

    """
    try:
        size = os.fstat(file).st_size
        _check_sealed(file, size)
        return Manifest.from_json(bytes(_mapped(file, size, False)).decode("utf-8", "replace"))
    finally:
        os.close(file)


def check_peer(connection: socket.socket) -> int:
    """The process at the other end, which must be of the same user.

    Raises:
        PermissionError: when it is another's.

    """
    size = struct.calcsize("3i")
    process, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if user != os.geteuid():
        raise PermissionError(f"process {process} at the other end is of user {user}, not of {os.geteuid()}")
    return int(process)
