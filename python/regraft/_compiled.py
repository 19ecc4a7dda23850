"""What a program was compiled to, and the engines and weights that serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from regraft import _regraft
from regraft.devices import moved, place_of_results

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from regraft.caches import Carry
    from regraft.calling import CallingConvention
    from regraft.glue import Glue
    from regraft.inputs import InputTypes
    from regraft.partition import PartitionReport

__all__ = ["Compiled", "Serving"]

# Takes the memory of an output over, without a copy.
_tensor_from: Callable[[Any], torch.Tensor] = torch._C._from_dlpack


@dataclass(frozen=True)
class Compiled:
    """What a program was compiled to, whatever weights serve."""

    convention: CallingConvention
    takes: InputTypes
    glue: Glue | None
    report: PartitionReport
    sources: Mapping[str, bool]
    """Names of all weights of the program; whether a state dict holds them."""
    digest: str
    """What the program computes: see :func:`regraft._program.digest_of`."""
    mode: str
    """``refittable``, ``stripped`` or ``frozen``."""
    keep_sources: str
    cache: tuple[str, ...] = ()
    """For each engine what the cache did: ``off``, ``hit`` or ``built``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings it was compiled with."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Names that are one weight, where one has several."""
    written: tuple[str, ...] = ()
    """Buffers that the program writes to."""
    identical: Mapping[str, str] | None = None
    """Digests of the only weights that parts in PyTorch take; ``None`` where they take any."""
    carry: Carry | None = None
    """What becomes of caches among the arguments."""
    device: str = "cpu"
    """Where the engines run: ``cpu`` or ``cuda:N``."""
    home: str = "cpu"
    """Where the parts in PyTorch run: where the program was when it was exported."""
    overwritten: tuple[int, ...] = ()
    """Which tensors of a call the program writes to: its first results are their new values."""
    program: ExportedProgram | None = field(default=None, repr=False)
    """The program without weights, for saving it."""


@dataclass(frozen=True)
class Serving:
    """The engines and weights that a call uses from its start to its end."""

    models: tuple[_regraft.Model, ...]
    kept: Mapping[str, torch.Tensor]
    """Weights of the parts that stay in PyTorch, by name."""
    sessions: tuple[_regraft.Session | None, ...]
    """For engines that keep state between calls, what keeps it."""
    initial: Mapping[str, torch.Tensor]
    """For buffers among ``kept`` that the program writes to, what they were given last."""
    device: str = "cpu"
    """Where the engines run."""

    @classmethod
    def of(
        cls,
        models: Sequence[_regraft.Model],
        kept: Mapping[str, torch.Tensor],
        stateful: Sequence[bool],
        initial: Mapping[str, torch.Tensor],
        device: str,
    ) -> Serving:
        """One whose engines begin with the state that their weights say."""
        sessions = tuple(
            m.session() if has_state else None for m, has_state in zip(models, stateful, strict=True)
        )
        return cls(tuple(models), kept, sessions, initial, device)

    @property
    def is_bound(self) -> bool:
        """Whether there are values for all weights."""
        is_bound = self.__dict__.get("_is_bound", False)
        if not is_bound:
            is_bound = all(model.is_bound for model in self.models) and not any(
                value.is_meta for value in self.kept.values()
            )
            self.__dict__["_is_bound"] = is_bound
        return bool(is_bound)

    def run_engine(self, index: int, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs one of the engines."""
        session = self.sessions[index]
        made = (self.models[index] if session is None else session).run(inputs, _tensor_from)
        return made if self.device == "cpu" else moved(made, place_of_results(inputs, self.device))

    def fork(self) -> Serving:
        """Another that shares everything with this one until it is refitted, but the state, which is
        reset.
        """
        models = tuple(model.fork() for model in self.models)
        stateful = [session is not None for session in self.sessions]
        return Serving.of(models, self.at_first, stateful, self.initial, self.device)

    @property
    def at_first(self) -> dict[str, torch.Tensor]:
        """What is kept, as it was before any call."""
        return {**self.kept, **{name: value.clone() for name, value in self.initial.items()}}

    def reset(self) -> None:
        """Forgets the state."""
        for session in self.sessions:
            if session is not None:
                session.reset()
        for name, value in self.initial.items():
            self.kept[name].copy_(value)
