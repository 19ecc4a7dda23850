"""``torch_tensorrt.dynamo.utils``: what code compares results with, and makes inputs with."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from regraft.compat.torch_tensorrt._utils import is_tegra_platform, is_tensorrt_version_supported
from regraft.compat.torch_tensorrt.absent import absent
from regraft.compat.torch_tensorrt.dynamo._defaults import default_device
from regraft.compat.torch_tensorrt.enums import Device
from regraft.compat.torch_tensorrt.input import Input
from regraft.compat.torch_tensorrt.settings import CompilationSettings, gathered

__all__ = [
    "ATOL",
    "COMPLEX_DTYPES",
    "COMPLEX_TO_REAL_DTYPE",
    "COSINE_THRESHOLD",
    "CPU_DEVICE",
    "DYNAMIC_DIM",
    "RTOL",
    "Frameworks",
    "check_module_output",
    "check_output_equal",
    "contains_sym_int",
    "cosine_similarity",
    "deallocate_module",
    "default_device",
    "get_model_device",
    "get_torch_inputs",
    "get_torch_tensor",
    "input_is_dynamic",
    "is_tegra_platform",
    "is_tensorrt_version_supported",
    "parse_dynamo_kwargs",
    "prepare_inputs",
    "set_log_level",
    "to_torch_device",
    "to_torch_tensorrt_device",
    "unified_dtype_converter",
    "unwrap_tensor_dtype",
    "unwrap_tensor_shape",
]

COSINE_THRESHOLD = 0.99
DYNAMIC_DIM = -1
RTOL = 5e-3
ATOL = 5e-3
CPU_DEVICE = "cpu"
COMPLEX_TO_REAL_DTYPE = {torch.complex64: torch.float32, torch.complex128: torch.float64}
COMPLEX_DTYPES = frozenset(COMPLEX_TO_REAL_DTYPE)

_LOWERS = "Regraft lowers programs itself: regraft compile --dump-dir shows what becomes of one"
_TENSORRT = "it is about TensorRT, which is not used here"
__getattr__ = absent(
    __name__,
    {
        "DataTypeEquivalence": "unified_dtype_converter converts data types",
        "TRTDataType": _TENSORRT,
        "parse_complex_tensor_structs": "tensors of complex numbers stay in PyTorch",
        "extract_var_range_info": "ranges are those of the exported program: range_constraints",
        "extract_var_range_info_for_profile": "one engine serves the whole range of its sizes",
        "validate_optimization_profiles": "one engine serves the whole range of its sizes",
        "get_graph_io_attrs": "module.report() says what a compiled module takes and gives",
        "parse_graph_io": "module.report() says what a compiled module takes and gives",
        "get_cpu_memory_usage": "module.memory() says what a compiled module takes",
        "release_host_and_device_memory": "memory is given back when a module goes: module.trim()",
        "is_quantized_by_modelopt": "quantized modules are refused by name when they are compiled",
        "get_flat_args_with_check": "modules take the structure of arguments that they were compiled with",
        "req_torch_version": "the package says which PyTorch it needs",
        **dict.fromkeys(
            ("get_metadata", "set_metadata", "copy_metadata", "flatten_nodes", "get_output_metadata"), _LOWERS
        ),
        "get_output_dtypes": _LOWERS,
    },
)


class Frameworks(Enum):
    """Whose data types there are."""

    NUMPY = "numpy"
    TORCH = "torch"
    TRT = "trt"


def unified_dtype_converter(dtype: Any, to: Frameworks) -> Any:
    """A data type of PyTorch or NumPy as one of the other, such as ``np.float16``.

    Raises:
        TypeError: for a type that the other has not, or TensorRT's.
    """
    if to is Frameworks.TRT:
        raise TypeError(f"Frameworks.TRT: {_TENSORRT}")
    try:
        torchs = dtype if isinstance(dtype, torch.dtype) else torch.from_numpy(np.zeros(1, dtype)).dtype
        return torchs if to is Frameworks.TORCH else torch.zeros(1, dtype=torchs).numpy().dtype.type
    except TypeError as error:
        raise TypeError(f"{dtype} is not a data type of both PyTorch and NumPy") from error


def cosine_similarity(gt_tensor: torch.Tensor, pred_tensor: torch.Tensor) -> float:
    """The cosine of the angle between two tensors seen as vectors; 1.0 for two without a length."""
    one, other = gt_tensor.flatten().double(), pred_tensor.flatten().double()
    if torch.equal(one, other):
        return 1.0
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0, eps=1e-12))


def check_output_equal(output1: Any, output2: Any, rtol: float = 1e-2, atol: float = 1e-2) -> bool:
    """Whether two results have the same structure, and tensors that are close."""
    one, structure = pytree.tree_flatten(output1)
    other, other_structure = pytree.tree_flatten(output2)
    if structure != other_structure:
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol, atol)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else type(a) is type(b) and a == b
        for a, b in zip(one, other, strict=True)
    )


def check_module_output(
    new_module: Any, refitted_module: Any, arg_inputs: Any, kwarg_inputs: Any = None
) -> bool:
    """Whether two modules give the same for a call."""
    kwargs = dict(kwarg_inputs or {})
    with torch.no_grad():
        return check_output_equal(new_module(*arg_inputs, **kwargs), refitted_module(*arg_inputs, **kwargs))


def get_model_device(module: torch.nn.Module) -> torch.device:
    """Where its first parameter or buffer is; the CPU where it has none."""
    first = next((tensor for of in (module.parameters(), module.buffers()) for tensor in of), None)
    return torch.device("cpu") if first is None else first.device


def deallocate_module(module: torch.nn.Module) -> None:
    """Moves a module to the CPU, and frees unused memory. Compiled modules stay where they are."""
    if not hasattr(module, "models"):
        module.to(CPU_DEVICE)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    gc.collect()


def prepare_inputs(inputs: Any, disable_memory_format_check: bool = False) -> Any:
    """An :class:`Input` in the place of each tensor and number, at any depth of lists, tuples and dicts.

    Raises:
        ValueError: for anything else.
    """

    def prepared(leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, Input):
            return leaf
        if isinstance(leaf, (bool, int, float)):
            leaf = torch.tensor(leaf)
        if not isinstance(leaf, torch.Tensor):
            raise ValueError(
                f"expected tensors, numbers and Input in lists, tuples and dicts, found {type(leaf).__name__}"
            )
        return Input.from_tensor(leaf, disable_memory_format_check)

    return pytree.tree_map(prepared, inputs, is_leaf=lambda leaf: isinstance(leaf, Input))


def get_torch_tensor(input: Input, device: Any, mode: str = "") -> torch.Tensor:
    """The example of a specification; ``mode`` names one of its three shapes."""
    if mode or input.torch_tensor is None:
        return input.example_tensor(mode or None).to(to_torch_device(device))
    return input.torch_tensor.to(to_torch_device(device))


def get_torch_inputs(inputs: Sequence[Any] | Mapping[str, Any], device: Any, mode: str = "") -> Any:
    """The examples of specifications, in a list or a dict as they are."""

    def example(leaf: Any) -> Any:
        if isinstance(leaf, Input):
            return get_torch_tensor(leaf, device, mode)
        return leaf.to(to_torch_device(device)) if isinstance(leaf, torch.Tensor) else leaf

    made = pytree.tree_map(example, inputs, is_leaf=lambda leaf: isinstance(leaf, Input))
    return list(made) if isinstance(made, tuple) else made


def contains_sym_int(tensor: Any) -> bool:
    """Whether one of some sizes is variable."""
    return any(isinstance(size, torch.SymInt) for size in tensor)


def input_is_dynamic(inputs: Sequence[Any]) -> bool:
    """Whether a size of one of the inputs may change."""
    return any(
        bool(one.dynamic_axes) if isinstance(one, Input) else contains_sym_int(one.shape) for one in inputs
    )


def unwrap_tensor_shape(tensor: Any, mode: Any = None) -> list[Any]:
    """The sizes of tensors, at any depth; ``(low, high)`` in the place of a variable one."""

    def size(one: Any) -> Any:
        sizes = one.node.shape_env if isinstance(one, torch.SymInt) else None
        if sizes is None:
            return one
        found = sizes.bound_sympy(one.node.expr)
        return found.lower, found.upper

    if isinstance(tensor, torch.Tensor):
        return [tuple(map(size, tensor.shape))]
    return [shape for part in tensor for shape in unwrap_tensor_shape(part, mode)]


def unwrap_tensor_dtype(tensor: Any) -> Any:
    """The data type of a tensor, or of each of several."""
    if isinstance(tensor, torch.Tensor):
        return tensor.dtype
    return [unwrap_tensor_dtype(part) for part in tensor]


def to_torch_device(device: Any) -> torch.device:
    """PyTorch's name of a device."""
    if isinstance(device, Device):
        return device.to(torch.device)
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def to_torch_tensorrt_device(device: Any) -> Device:
    """Torch-TensorRT's name of a GPU, or of the CPU.

    Raises:
        ValueError: for another device.
    """
    if isinstance(device, Device):
        return device
    if device is None:
        return default_device()
    found = torch.device(device)
    if found.type not in ("cuda", "cpu"):
        raise ValueError(f"{found} is neither a GPU nor the CPU")
    return Device("cpu") if found.type == "cpu" else Device(gpu_id=found.index or 0)


def set_log_level(parent_logger: logging.Logger, level: int) -> None:
    """Of what is shown."""
    parent_logger.setLevel(level)


def parse_dynamo_kwargs(kwargs: Mapping[str, Any]) -> tuple[CompilationSettings, Any]:
    """Settings by keyword, and the engine cache among them."""
    settings = gathered(None, kwargs)
    return settings, settings.custom_engine_cache
