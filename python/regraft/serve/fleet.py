"""Weights that change on many servers together: all stage, then all publish."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from regraft.serve.client import Client, ServerError

T = TypeVar("T")


@dataclass
class Outcome:
    """The outcome of a publication."""

    digest: str
    """Of the weights that serve now."""
    published: list[str] = field(default_factory=list)
    """The servers that serve them."""
    lost: dict[str, ServerError] = field(default_factory=dict)
    """Servers that had staged and did not answer any more, with what was last heard of them."""


class FleetError(Exception):
    """A publication was given up before any server published: every server still serves what it did.

    `errors` has the reason of each server that failed.
    """

    def __init__(self, message: str, errors: Mapping[str, Exception]) -> None:
        self.errors = errors
        super().__init__("\n".join([message, *(str(error) for error in errors.values())]))


def publish_everywhere(
    servers: Iterable[str],
    model: str,
    weights: str | Path | bytes | None = None,
    *,
    token: str | None = None,
    timeout: float = 600.0,
    patience: float = 10.0,
    context: ssl.SSLContext | None = None,
    **stage: Any,
) -> Outcome:
    """Makes all servers serve these weights: all stage, and when all have, all publish.

    A server that cannot stage them ends it for all: what the others staged is dropped, and all serve what
    they did. Once all have staged, publishing is a change of one pointer on each. A server that does not
    answer then is asked again for `patience` seconds; one that stays away is in `lost`, and the others
    serve the new weights. Each answer of a server is of one generation all the time; for the moment
    between the first and the last publication, servers differ.

    A server that joins later is brought up by the same call: those that serve the weights already change
    nothing.

    Args:
        servers: `host:port` or URLs.
        model: its name, on all of them.
        weights: as in `Client.stage`.
        token: a token with the right to change weights.
        timeout: seconds that a stage may take.
        patience: seconds for a server that does not answer when it is to publish.
        context: how TLS is checked.
        **stage: further arguments of `Client.stage`, such as `kind` and `partial`.

    Raises:
        FleetError: a server could not stage, or they would serve different weights.

    Example:
        >>> publish_everywhere(["a:8000", "b:8000"], "bert", "tuned.safetensors")  # doctest: +SKIP
        Outcome(digest='6ee0…', published=['a:8000', 'b:8000'], lost={})
    """
    clients = {
        name: Client(name, token=token, timeout=timeout, context=context) for name in dict.fromkeys(servers)
    }
    if not clients:
        raise ValueError("there are no servers")
    if weights is not None and not isinstance(weights, bytes):
        weights = Path(weights).read_bytes()
    staged, failed = _each(clients, lambda client: client.stage(model, weights, **stage))
    if failed:
        _give_up(clients, staged, model)
        raise FleetError(
            f"{len(failed)} of {len(clients)} servers could not stage; nothing was published", failed
        )
    digests = {name: str(answer["staged"]["digest"]) for name, answer in staged.items()}
    if len(set(digests.values())) > 1:
        _give_up(clients, staged, model)
        listed = "\n".join(f"  {name}  {digest[:16]}" for name, digest in digests.items())
        raise FleetError(
            f"the servers would serve different weights; nothing was published\n{listed}\n"
            "  help: they served different ones before; send all weights, not a part",
            {},
        )
    digest = next(iter(digests.values()))
    published, lost = _each(clients, lambda client: _publish(client, model, digest, patience))
    if not published:
        raise FleetError("no server answered when it was to publish", lost)
    return Outcome(digest, [name for name in clients if name in published], lost)


def _publish(client: Client, model: str, digest: str, patience: float) -> dict[str, Any]:
    """Publishes, also when the answer to an earlier try was lost."""
    until = time.monotonic() + patience
    while True:
        try:
            return client.publish(model, digest)
        except ServerError as error:
            # An answer is an answer; a server that started again has nothing staged.
            if error.status is not None or time.monotonic() >= until:
                raise
        time.sleep(0.1)


def _give_up(clients: dict[str, Client], staged: dict[str, Any], model: str) -> None:
    # One that does not answer has nothing that could be published unasked.
    _each({name: clients[name] for name in staged}, lambda client: client.discard(model))


def _each(
    clients: dict[str, Client], work: Callable[[Client], T]
) -> tuple[dict[str, T], dict[str, ServerError]]:
    """Does it on all servers at a time; returns the results and the errors."""
    results: dict[str, T] = {}
    errors: dict[str, ServerError] = {}
    if not clients:
        return results, errors
    with ThreadPoolExecutor(max_workers=min(len(clients), 64)) as threads:
        waiting = {name: threads.submit(work, client) for name, client in clients.items()}
        for name, one in waiting.items():
            try:
                results[name] = one.result()
            except ServerError as error:
                errors[name] = error
    return results, errors
