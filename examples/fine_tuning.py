"""A model that is trained in PyTorch, and evaluated compiled with the weights of each step.

PYTHON examples/fine_tuning.py
"""

from __future__ import annotations

import torch
from torch import nn

import regraft


def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(256, 32)
    labels = (inputs[:, :4].sum(1) > 0).long()
    train, held_out = (inputs[:192], labels[:192]), (inputs[192:], labels[192:])

    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
    compiled = regraft.compile(net, (held_out[0],))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)

    differences, slots = [], set()
    for step in range(60):
        loss = nn.functional.cross_entropy(net(train[0]), train[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        report = compiled.refit(net.state_dict())
        slots.add(len(report.recomputed_slots))
        scores = compiled(held_out[0])
        with torch.no_grad():
            expected = net(held_out[0])
        differences.append(((scores - expected).abs().max() / expected.abs().max()).item())
        if step % 20 == 19:
            accuracy = (scores.argmax(1) == held_out[1]).float().mean().item()
            print(f"step {step + 1}: loss {loss.item():.3f}, held out {accuracy:.0%}")

    print(f"60 refits of {max(slots)} slots, none compiled; last one in {report.milliseconds:.2f} ms")
    print(f"as PyTorch at each step: {max(differences) < 1e-4}")


if __name__ == "__main__":
    main()
