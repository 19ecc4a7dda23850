"""A policy that is trained in one process and acts, compiled, in another: weights pass through shared
memory at each step.

PYTHON examples/policy_training.py

The loop is that of reinforcement learning with separate generation (TRL, OpenRLHF, verl): the actor
generates with the weights of the last step, the trainer learns from what it generated, the actor is
refitted. The task is a toy, a bandit with states, so that it learns within seconds.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

import regraft
from regraft.sync import Receiver, Sender

STEPS, BATCH, STATE, ACTIONS = 40, 256, 32, 4


def policy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(STATE, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, ACTIONS)
    )


def best_action(states: torch.Tensor) -> torch.Tensor:
    return states.reshape(len(states), ACTIONS, -1).sum(2).argmax(1)


def train(socket: str, rollouts: Connection) -> None:
    """The trainer's process: REINFORCE with the mean reward as its baseline."""
    torch.set_num_threads(1)
    net = policy()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with Sender(socket) as sender:
        sender.send(net.state_dict(), tag="step 0")
        for step in range(1, STEPS + 1):
            states, actions, rewards = rollouts.recv()
            log_p = torch.log_softmax(net(states), 1).gather(1, actions[:, None])[:, 0]
            loss = -((rewards - rewards.mean()) * log_p).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sender.send(net.state_dict(), tag=f"step {step}")
        # What the actor must give now.
        probe = torch.linspace(-1, 1, STATE)[None]
        with torch.no_grad():
            rollouts.send((probe, net(probe)))
        rollouts.recv()


def act(socket: str, rollouts: Connection) -> None:
    """The actor: acts compiled, and is refitted with what the trainer sends."""
    torch.set_num_threads(1)
    batch = torch.export.Dim("batch", min=1, max=BATCH)
    example = torch.export.export(policy().eval(), (torch.randn(2, STATE),), dynamic_shapes=({0: batch},))
    compiled = regraft.compile(example)
    chance = torch.Generator().manual_seed(1)
    acting = refitting = waiting = 0.0
    with Receiver(socket) as receiver:
        begin = time.perf_counter()
        for step in range(STEPS + 1):
            applied = receiver.refit(compiled, timeout=60)
            assert applied.tag == f"step {step}"
            refitting += applied.seconds
            waiting += applied.waited
            if step == STEPS:
                break
            start = time.perf_counter()
            states = torch.randn(BATCH, STATE, generator=chance)
            actions = torch.multinomial(torch.softmax(compiled(states), 1), 1, generator=chance)[:, 0]
            rewards = (actions == best_action(states)).float()
            acting += time.perf_counter() - start
            rollouts.send((states, actions, rewards))
            if step % 10 == 9:
                print(f"{applied.tag}: reward {rewards.mean():.2f}")
        everything = time.perf_counter() - begin
        probe, expected = rollouts.recv()
        is_same = torch.allclose(compiled(probe), expected, rtol=1e-4, atol=1e-5)
        rollouts.send("done")
    each = refitting / (STEPS + 1) * 1e3
    print(f"{STEPS + 1} refits: {refitting / everything:.1%} of the time, {each:.2f} ms each")
    print(f"acting {acting / everything:.0%}, waiting for the trainer {waiting / everything:.0%}")
    print(f"learned: {rewards.mean() > 0.5}, as the trainer: {is_same}")


def main() -> None:
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "policy.sock")
        trainer = processes.Process(target=train, args=(socket, there))
        trainer.start()
        act(socket, here)
        trainer.join()


if __name__ == "__main__":
    main()
