"""What passes between the ledger and the replicas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["NAMESPACE", "Failure", "Order", "Ready", "ledger_name"]

NAMESPACE = "regraft"


def ledger_name(app: str, deployment: str) -> str:
    """The name of the actor that keeps the ledger of a deployment."""
    return f"ledger:{app}:{deployment}"


@dataclass(frozen=True)
class Order:
    """Weights to be staged; their bytes travel beside it."""

    version: int
    manifest: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the weights before is left after it."""
        return not self.options.get("partial") and not self.options.get("ignore_unknown")


@dataclass(frozen=True)
class Ready:
    """Weights are staged."""

    digest: str


@dataclass(frozen=True)
class Failure:
    """Why something could not be done."""

    reason: str
