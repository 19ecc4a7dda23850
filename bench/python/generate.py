"""Tokens a second of ``generate()``: a Llama shape of 0.1 billion weights with a static cache, greedy, one
sequence.

    PYTHONPATH=target/python PYTHON bench/python/generate.py [--tokens 64] [--dtype bfloat16] [--rounds 5]

With the environment of scripts/python-env.sh. PyTorch and the mutable module are interleaved, round by
round, in one process; medians of all rounds. Both must give the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import regraft


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        vocab_size=32000,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def main() -> None:
    options = arguments()
    warnings.filterwarnings("ignore", category=regraft.SlowWarning)
    net = model(getattr(torch, options.dtype))
    mutable = regraft.MutableModule(net)
    prompt = torch.randint(0, 32000, (1, 16), generator=torch.Generator().manual_seed(1))

    def tokens(module: nn.Module, count: int) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        made = module.generate(
            prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, cache_implementation="static"
        )
        return made, count / (time.perf_counter() - start)

    with torch.inference_mode():
        start = time.perf_counter()
        tokens(mutable, options.tokens)
        print(f"first call, with {mutable.recompiles + 1} compilations: {time.perf_counter() - start:.1f} s")
        tokens(net, options.tokens)
        eager, compiled, same = [], [], True
        for _ in range(options.rounds):
            wanted, rate = tokens(net, options.tokens)
            eager.append(rate)
            found, rate = tokens(mutable, options.tokens)
            compiled.append(rate)
            same &= torch.equal(found, wanted)
    before, after = statistics.median(eager), statistics.median(compiled)
    size = sum(weight.numel() for weight in net.parameters()) / 1e6
    threads = torch.get_num_threads()
    print(f"{size:.0f} M weights in {options.dtype}, {threads} threads, torch {torch.__version__}")
    for name, rates in (("eager", eager), ("compiled", compiled)):
        middle = statistics.median(rates)
        print(f"{name:9}{middle:7.1f} tokens/s   ({min(rates):.1f} - {max(rates):.1f})")
    print(f"ratio    {after / before:7.2f}")
    print(f"same tokens: {same}; recompiles: {mutable.recompiles}")


if __name__ == "__main__":
    main()
