"""A fleet on Ray Serve: replicas that answer from one engine, and weights that change on all of them
together.

.. code-block:: python

    from ray import serve
    from regraft.serve.ray import application, publish_everywhere

    handle = serve.run(application("bert.rgf", num_replicas=8))
    answer = handle.remote([ids]).result()  # answer.outputs, answer.version

    publish_everywhere("tuned.safetensors")

All replicas stage, and when all have, all publish. One that cannot stage ends it for all. A replica that
joins later, by autoscaling or in the place of one that died, answers its first request from the newest
weights. Needs the extra ``ray``.

Who is a replica, and what the newest weights are, is known by a *ledger*: a named actor of Ray for each
deployment. No request passes through it. When it dies, Ray starts it again, and it takes the newest weights
back from a replica.
"""

from importlib.util import find_spec

if find_spec("ray") is None:
    raise ImportError("regraft.serve.ray needs Ray Serve: pip install 'regraft[ray]'")

from regraft.serve.fleet import FleetError
from regraft.serve.ray.publishing import Published, application, forget, publish_everywhere, status
from regraft.serve.ray.replica import Answer, Replica

__all__ = [
    "Answer",
    "FleetError",
    "Published",
    "Replica",
    "application",
    "forget",
    "publish_everywhere",
    "status",
]
