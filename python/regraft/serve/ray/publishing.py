"""What is done with a fleet from outside: it is started, and given weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import ray
from ray import serve

from regraft._regraft import StateDict
from regraft.serve.fleet import FleetError
from regraft.serve.ray.orders import NAMESPACE, ledger_name
from regraft.serve.ray.replica import Replica, packed

__all__ = ["Published", "application", "forget", "publish_everywhere", "status"]


@dataclass(frozen=True)
class Published:
    """A publication."""

    version: int
    """Which answers tell from now on."""
    replicas: list[str] = field(default_factory=list)
    """Those that serve it."""
    lost: dict[str, str] = field(default_factory=dict)
    """Those that had staged and did not publish, with the reason. They were ended, and Ray Serve replaces
    them.
    """


def application(
    engine: str | PathLike[str],
    *,
    replica: type[Replica] = Replica,
    name: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    workers: int = 1,
    **options: Any,
) -> serve.Application:
    """An application of one deployment, for ``serve.run``.

    Args:
        engine: path of the engine file, on each node.
        replica: the deployment class: a subclass of :class:`Replica` may translate requests.
        name: of the deployment; that of the class by default.
        threads: of a run, in each replica.
        device: ``cpu`` or ``cuda:N``, in each replica.
        workers: runs of a replica at a time.
        **options: of ``serve.deployment``: ``num_replicas``, ``autoscaling_config``, ``ray_actor_options``,
        ...

    Example:
        >>> handle = serve.run(application("bert.rgf", num_replicas=8))  # doctest: +SKIP

    """
    deployment = serve.deployment(replica, name=name or replica.__name__, **options)
    return deployment.bind(str(engine), threads=threads, device=device, workers=workers)


def publish_everywhere(
    weights: Mapping[str, Any] | StateDict | str | PathLike[str],
    *,
    app: str = "default",
    deployment: str = "Replica",
    partial: bool = False,
    ignore_unknown: bool = False,
    reject_non_finite: bool = False,
    timeout: float = 600.0,
) -> Published:
    """Has all replicas of a deployment serve these weights.

    All stage, and when all have, all publish. One that cannot stage ends it for all, and all serve what
    they did. One that dies meanwhile does not: it answers no request any more, and the replica in its place
    begins with the newest weights, as each one does that joins later. When this returns, no replica begins
    a run on older weights. Until then each answer is still of one generation, and says of which
    version.

    Args:
        weights: tensors by the names of ``state_dict()``, of PyTorch or NumPy, or a weight file. They go
        through Ray's object
            store; replicas of one node read the same memory.
        app: the application of Ray Serve.
        deployment: which of its deployments.
        partial: take the names that are there and keep the other weights.
        ignore_unknown: leave names alone that the program does not have.
        reject_non_finite: refuse infinities and NaN.
        timeout: seconds for a replica to stage.

    Raises:
        FleetError: a replica could not stage, or none is running; nothing was published.
        WeightsError: for what is not a tensor.

    """
    options = {"partial": partial, "ignore_unknown": ignore_unknown, "reject_non_finite": reject_non_finite}
    manifest, buckets = packed(weights)
    blocks = [ray.put(bucket) for bucket in buckets]
    try:
        answer = ray.get(_ledger(app, deployment).publish.remote(manifest, options, timeout, *blocks))
    except ray.exceptions.RayActorError as error:
        why = f"the ledger died, and the outcome of the publication is unknown; call again: {error}"
        raise FleetError(why, {}) from error
    if "failed" in answer:
        failed = {
            name: RuntimeError(f"{name}: {why}" if name else why) for name, why in answer["failed"].items()
        }
        message = f"{len(failed)} of {answer['of']} replicas could not stage; nothing was published"
        raise FleetError(message, dict(failed))
    return Published(answer["version"], answer["published"], answer["lost"])


def status(*, app: str = "default", deployment: str = "Replica") -> dict[str, Any]:
    """``version``, the newest one; ``replicas``, the version that each serves; and ``silent``, those that
    do not answer, with the reason.

    Raises:
        FleetError: there is no such deployment.

    """
    known: dict[str, Any] = ray.get(_ledger(app, deployment).status.remote())
    return known


def forget(*, app: str = "default", deployment: str = "Replica") -> None:
    """Ends the ledger of a deployment that was deleted. Without this, one that is made again under the same
    name, from the same engine, begins with the weights that were published last.

    Raises:
        FleetError: there is no such deployment.

    """
    ray.kill(_ledger(app, deployment))


def _ledger(app: str, deployment: str) -> Any:
    try:
        return ray.get_actor(ledger_name(app, deployment), NAMESPACE)
    except ValueError as error:
        raise FleetError(
            f"no replica of {deployment} in the application {app} was ever started here", {}
        ) from error
