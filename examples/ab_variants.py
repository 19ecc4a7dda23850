"""Two sets of weights of one model, side by side: what is the same is in memory once.

PYTHON examples/ab_variants.py
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torchvision

import regraft


def bucket(user: str) -> str:
    """Every tenth user gets the candidate, always the same ones."""
    return "candidate" if sum(user.encode()) % 10 == 0 else "control"


def main() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18().eval()
    candidate = copy.deepcopy(net)
    with torch.no_grad():
        candidate.fc.weight += 0.05 * torch.randn_like(candidate.fc.weight)

    images = torch.randn(1, 3, 96, 96)
    control = regraft.compile(net, (images,))
    fork = control.fork()
    report = fork.refit(candidate.state_dict())
    variants = {"control": control, "candidate": fork}
    print(f"candidate: {len(report.applied)} weight differs, {len(report.recomputed_slots)} slot rebuilt")

    served = Counter()
    for number in range(200):
        name = bucket(f"user-{number}")
        scores = variants[name](images)
        served[name] += 1
    print(f"served: {served['control']} by control, {served['candidate']} by candidate")

    for name, reference in (("control", net), ("candidate", candidate)):
        with torch.no_grad():
            expected = reference(images)
        difference = (variants[name](images) - expected).abs().max() / expected.abs().max()
        print(f"{name}: {difference:.0e} from PyTorch" if difference > 1e-4 else f"{name}: as PyTorch")
    private = fork.memory()["private"] / fork.memory()["slots"]
    print(f"candidate's own memory: {private:.1%} of its {fork.memory()['slots'] / 1e6:.1f} MB")
    assert scores.shape == (1, 1000)


if __name__ == "__main__":
    main()
