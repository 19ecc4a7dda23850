"""Weights from a training process to a process of the same machine that runs them, in shared memory.

The trainer:

.. code-block:: python

    from regraft.sync import Sender

    with Sender("/run/user/1000/policy.sock") as sender:
        for step in range(steps):
            ...
            sender.send(model.state_dict(), tag=f"step {step}")

The process that generates:

.. code-block:: python

    from regraft.sync import Receiver

    receiver = Receiver("/run/user/1000/policy.sock")
    while True:
        receiver.refit(compiled)  # waits for weights newer than the last ones
        ...

The trainer copies its tensors once into memory that both have mapped; a refit reads them there, under the
names and in the types of the state dict, and quantizes or packs them on the way as the engine's recipes
say. Nothing is written to a disk, and nothing is left when both processes are gone. Linux only. PyTorch is
needed by neither side.
"""

from regraft.sync.receiver import Applied, Receiver, Update
from regraft.sync.sender import Sender

__all__ = ["Applied", "Receiver", "Sender", "Update"]
