"""Writes BERT-base with random weights, for load.py and overhead.py: rows and words vary.

    PYTHON bench/serve/prepare.py FOLDER [--layers 12] [--hidden] [--onnx]
    PYTHON bench/serve/prepare.py FOLDER --perceptron     instead: `perceptron.pt2`, 6.3 MB, for the load test

PYTHON is that of scripts/python-env.sh. `bert.pt2` is for `regraft compile`, `bert.onnx` for the baselines
(by the older exporter, which needs nothing more). One input, `input_ids`; one output, the pooled state of
each row, or with `--hidden` the last hidden states: 393 kB for 128 words, which take longest to send.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import BertConfig, BertModel


class Words(nn.Module):
    """BERT of words alone."""

    def __init__(self, layers: int, is_pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(num_hidden_layers=layers, attn_implementation="sdpa")
        self.bert = BertModel(config, add_pooling_layer=is_pooled)
        self.is_pooled = is_pooled

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.bert(input_ids)
        return found.pooler_output if self.is_pooled else found.last_hidden_state


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 256)]
    return nn.Sequential(*layers).eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", action="store_true", help="gives the last hidden states")
    parser.add_argument("--perceptron", action="store_true", help="writes a perceptron instead")
    parser.add_argument("--rows", type=int, default=64, help="the most rows of a run")
    parser.add_argument("--onnx", action="store_true", help="writes bert.onnx, too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = Dim("rows", min=1, max=arguments.rows)
    if arguments.perceptron:
        program = torch.export.export(perceptron(), (torch.zeros(2, 256),), dynamic_shapes=({0: rows},))
        torch.export.save(program, arguments.folder / "perceptron.pt2")
        return
    model = Words(arguments.layers, not arguments.hidden).eval()
    words = torch.randint(0, 30000, (2, 128))
    sizes = {"input_ids": {0: rows, 1: Dim("words", min=2, max=512)}}
    with torch.no_grad():
        program = torch.export.export(model, (words,), dynamic_shapes=sizes, strict=False)
        torch.export.save(program, arguments.folder / "bert.pt2")
        if arguments.onnx:
            torch.onnx.export(
                model,
                (words,),
                str(arguments.folder / "bert.onnx"),
                input_names=["input_ids"],
                output_names=["output"],
                dynamic_axes={"input_ids": {0: "rows", 1: "words"}, "output": {0: "rows"}},
                opset_version=18,
                dynamo=False,
            )


if __name__ == "__main__":
    main()
