"""Weights of the parts of a module that stay in PyTorch: how new values are checked and taken over."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from regraft import _regraft
from regraft.errors import InputError, Problem

__all__ = [
    "KeptRefit",
    "digest_of_tensor",
    "plain_tensor",
    "same_bits",
    "short_name",
    "type_of",
    "without_values",
]

_SHORT = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float64": "f64",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
}


@dataclass
class KeptRefit:
    """A refit of such weights under way. Nothing that serves is touched."""

    kept: dict[str, torch.Tensor]
    """What will serve; at first what serves."""
    in_state_dict: Mapping[str, bool]
    home: torch.device
    """Where the parts in PyTorch run."""
    written: Collection[str] = ()
    """Buffers that the program writes to: what they hold now says nothing about their weight."""
    identical: Mapping[str, str] | None = None
    """Digests that values must have; ``None`` where any will do."""
    problems: list[Problem] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    not_given: list[str] = field(default_factory=list)

    def take(
        self,
        given: Mapping[str, Any],
        *,
        partial: bool,
        changed: Collection[str] | str | None,
        reject_non_finite: bool,
    ) -> None:
        """Checks and copies the values of all weights that are given."""
        looked_at = None if changed is None or isinstance(changed, str) else set(changed)
        for name in self.kept:
            if name not in given or (looked_at is not None and name not in looked_at):
                self.not_given.append(name)
                if name not in given and not partial and self.in_state_dict[name]:
                    self.problems.append(Problem("missing", name, "missing"))
                continue
            problem = self._take(name, given[name], reject_non_finite)
            if problem is not None:
                self.problems.append(Problem(problem[0], name, problem[1]))

    def _take(self, name: str, value: Any, reject_non_finite: bool) -> tuple[str, str] | None:
        """What kind of problem there is, and in words."""
        before = self.kept[name]
        try:
            new = plain_tensor(value, self.home)
        except InputError as error:
            return "mismatch", str(error)
        both_float = new.is_floating_point() and before.is_floating_point()
        if new.shape != before.shape or not (new.dtype == before.dtype or both_float):
            return "mismatch", f"expected {type_of(before)}, found {type_of(new)}"
        if reject_non_finite and new.is_floating_point() and not bool(torch.isfinite(new).all()):
            return "non_finite", "has infinities or NaN"
        new = new.to(before.dtype, copy=True)
        if self.identical is not None and digest_of_tensor(new) != self.identical.get(name):
            return "not_identical", "differs from the weights that the engine was built with"
        if name not in self.written and not before.is_meta and same_bits(before, new):
            self.unchanged.append(name)
            return None
        self.applied.append(name)
        self.kept[name] = new
        return None


def plain_tensor(value: Any, home: torch.device | None = None) -> torch.Tensor:
    """``value`` as a dense tensor, which may share its memory: of the CPU, or wherever it is moved to
    ``home``.

    Raises:
        InputError: when it is none.

    """
    if isinstance(value, torch.Tensor):
        if type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            raise InputError(f"expected a plain tensor, found a {type(value).__name__}: give its values")
        if not value.is_cpu and not (home is not None and value.is_cuda):
            raise InputError(f"expected a tensor on the CPU, found one on {value.device}: move it (.cpu())")
        if value.layout is not torch.strided:
            raise InputError(f"expected a dense tensor, found one of {value.layout}: make it dense")
        with torch._C.DisableTorchFunctionSubclass():
            plain = value.detach().as_subclass(torch.Tensor)
            return plain if home is None else plain.to(home)
    try:
        if isinstance(value, (np.ndarray, np.generic)) or (
            hasattr(value, "__float__") and not hasattr(value, "__dlpack__")
        ):
            made = torch.from_numpy(np.array(value))
            return made if home is None else made.to(home)
        if isinstance(value, _regraft.Array) or hasattr(value, "__dlpack__"):
            made = torch.utils.dlpack.from_dlpack(value)
            return made if home is None else made.to(home)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise InputError(f"a {type(value).__name__} that PyTorch does not take: {error}") from error
    found = type(value).__name__
    raise InputError(f"expected a tensor (PyTorch, NumPy or DLPack), found {found}")


def without_values(
    kept: Mapping[str, torch.Tensor], in_state_dict: Mapping[str, bool]
) -> dict[str, torch.Tensor]:
    """``kept`` where what a state dict brings has a type and no values."""
    return {name: value.to("meta") if in_state_dict[name] else value for name, value in kept.items()}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are of one type and hold the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def digest_of_tensor(value: torch.Tensor) -> str:
    """A digest of type and bits."""
    return hashlib.sha256(type_of(value).encode() + _bytes(value).cpu().numpy().tobytes()).hexdigest()


def type_of(value: torch.Tensor) -> str:
    """Such as ``f32[2, 8]``."""
    return f"{short_name(str(value.dtype).removeprefix('torch.'))}{list(value.shape)}"


def short_name(dtype: str) -> str:
    """Regraft's name of a dtype of PyTorch."""
    return _SHORT.get(dtype, dtype)


def _bytes(value: torch.Tensor) -> torch.Tensor:
    return value.detach().reshape(-1).contiguous().view(torch.uint8)
