"""The backends of ``torch.compile`` under Torch-TensorRT's names, while this package is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._dynamo import list_backends, register_backend

from regraft.compat.torch_tensorrt.settings import for_torch_compile, gathered, report_without_effect

__all__ = ["aot_torch_tensorrt_aten_backend", "register", "torch_tensorrt_backend"]


def torch_tensorrt_backend(
    gm: torch.fx.GraphModule,
    sample_inputs: Sequence[Any],
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """``backend="tensorrt"``: Regraft's backend, with the settings of Torch-TensorRT as options."""
    from regraft.dynamo import regraft

    chosen = gathered(None, dict(options or {}))
    wanted = for_torch_compile(chosen)
    report_without_effect(chosen, is_live=True)
    return regraft(gm, sample_inputs, options=wanted, **kwargs)


aot_torch_tensorrt_aten_backend = torch_tensorrt_backend


def register() -> None:
    """Makes the names known, where Torch-TensorRT itself has not done so."""
    known = list_backends(exclude_tags=())
    for name in ("tensorrt", "torch_tensorrt"):
        if name not in known:
            register_backend(compiler_fn=torch_tensorrt_backend, name=name)
