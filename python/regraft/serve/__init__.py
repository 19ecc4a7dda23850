"""Servers of `regraft serve`, and fleets of them: weights that change on all replicas together.

    from regraft.serve import publish_everywhere

    publish_everywhere(["10.0.0.5:8000", "10.0.0.6:8000"], "bert", "tuned.safetensors")

Nothing but the standard library is needed.
"""

from regraft.serve.client import Client, ServerError
from regraft.serve.fleet import FleetError, Outcome, publish_everywhere

__all__ = ["Client", "FleetError", "Outcome", "ServerError", "publish_everywhere"]
