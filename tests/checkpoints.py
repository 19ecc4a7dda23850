"""Checkpoints as tools write them: containers around state dicts, and names that wrappers give."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

State = dict[str, torch.Tensor]


class Block(nn.Module):
    """A convolution with its norm, and what else state dicts have."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    """A small model with buffers that a state dict holds, and one that it does not."""

    scale: torch.Tensor

    def __init__(self, norm: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Block(3), Block(4))
        self.norm = nn.LayerNorm(4)
        self.head = norm(nn.Linear(4, 5))
        self.register_buffer("scale", torch.tensor([0.5, 1.5, 2.0, -1.0]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.encoder(x).mean((2, 3)) * self.scale
        return self.head(self.norm(features))


INPUT = torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def randomized(net: nn.Module, seed: int) -> nn.Module:
    """``net`` with seeded weights, whose variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                new = torch.randn(value.shape, generator=generator) * 0.5
                value.copy_(
                    new.abs() + 0.5 if name.endswith(("running_var", "weight_g", "original0")) else new
                )
    return net.eval()


# Containers: each writes a state to a file or folder below `folder`, and gives what refit() takes.


def saved(content: Any, folder: Path, **options: Any) -> Path:
    path = folder / "model.pt"
    torch.save(content, path, **options)
    return path


def lightning(state: State, folder: Path) -> Path:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "global_step": 77,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "kth_best_model_path": ""}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "args",
        "hyper_parameters": argparse.Namespace(lr=1e-3),
    }
    return saved(content, folder)


def accelerate(state: State, folder: Path) -> Path:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    content = {
        "model": OrderedDict(state),
        "optimizer": optimizer.state_dict(),
        "rng_state": torch.get_rng_state(),
        "best": torch.tensor(0.1),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "classes": {"a", "b"},
        "phase": 1 + 2j,
        "digest": b"\x00\xff",
        "size": torch.Size([2, 3]),
    }
    return saved(content, folder)


def big_endian(state: State, folder: Path) -> Path:
    """What a big-endian machine writes: the mark says so, and numbers stand the other way round."""
    path = saved({name: value.contiguous().clone() for name, value in state.items()}, folder)
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    # Storages are numbered in the order of the state.
    sizes = {str(i): value.element_size() for i, value in enumerate(state.values())}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            entry = name.rsplit("/", 1)[1]
            if name.endswith("/byteorder"):
                content = b"big"
            elif "/data/" in name and sizes[entry] > 1:
                content = np.frombuffer(content, f"<u{sizes[entry]}").byteswap().tobytes()
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def tar(state: State, folder: Path) -> Path:
    """What `torch.save` of PyTorch 0.1 wrote, for which no writer is left."""
    path = folder / "model.pt"
    storages, tensors = io.BytesIO(), io.BytesIO()
    pickle.dump(len(state), storages, protocol=2)
    pickle.dump(len(state), tensors, protocol=2)
    for number, value in enumerate(state.values()):
        value = value.contiguous()
        kind = torch.storage._dtype_to_storage_type_map()[value.dtype]
        storage_class = getattr(torch, kind)
        key, tensor_key = 1000 + number, 94000000000000 + number
        pickle.dump((key, "cpu", storage_class), storages, protocol=2)
        storages.write(
            struct.pack("<q", value.numel()) + value.reshape(-1).view(torch.uint8).numpy().tobytes()
        )
        tensor_class = getattr(torch, kind.replace("Storage", "Tensor"))
        pickle.dump((tensor_key, key, tensor_class), tensors, protocol=2)
        tensors.write(struct.pack("<q", value.dim()))
        tensors.write(struct.pack(f"<{value.dim()}q", *value.shape))
        tensors.write(struct.pack(f"<{value.dim()}q", *value.stride()))
        tensors.write(struct.pack("<q", 0))
    pickle.dump([], storages, protocol=2)

    class Reference:
        def __init__(self, number: int) -> None:
            self.number = number

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.number if isinstance(value, Reference) else None

    named = io.BytesIO()
    references = OrderedDict((name, Reference(94000000000000 + i)) for i, name in enumerate(state))
    Pickler(named, protocol=2).dump(references)
    info = pickle.dumps({"protocol_version": 1000, "little_endian": True}, protocol=2)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        files = {
            "sys_info": info,
            "pickle": named.getvalue(),
            "storages": storages.getvalue(),
            "tensors": tensors.getvalue(),
        }
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def safetensors_file(state: State, folder: Path, name: str = "model.safetensors") -> Path:
    path = folder / name
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in state.items()}, path, {"format": "pt"})
    return path


def shards(state: State, folder: Path, ending: str) -> Path:
    """Two shards with their index."""
    names = sorted(state)
    base = "model" if ending == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{base}-0000{number}-of-00002.{ending}"
        tensors = {name: state[name].clone() for name in part}
        if ending == "safetensors":
            safetensors_file(tensors, folder, file)
        else:
            torch.save(tensors, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = folder / f"{base}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def hugging_face(state: State, folder: Path) -> Path:
    safetensors_file(state, folder)
    (folder / "config.json").write_text("{}")
    torch.save({"unrelated": torch.ones(1)}, folder / "training_args.bin")
    return folder


def hugging_face_bin(state: State, folder: Path) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    return folder


def hugging_face_shards(state: State, folder: Path) -> Path:
    shards(state, folder, "safetensors")
    return folder


CONTAINERS: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": safetensors_file,
    "safetensors-shards": lambda state, folder: shards(state, folder, "safetensors"),
    "bin-shards": lambda state, folder: shards(state, folder, "bin"),
    "hugging-face": hugging_face,
    "hugging-face-bin": hugging_face_bin,
    "hugging-face-shards": hugging_face_shards,
    "torch": saved,
    "torch-before-1.6": lambda state, folder: saved(state, folder, _use_new_zipfile_serialization=False),
    "torch-0.1-tar": tar,
    "torch-big-endian": big_endian,
    "torch-protocol-5": lambda state, folder: saved(state, folder, pickle_protocol=5),
    "lightning": lightning,
    "model": accelerate,
    "model_state": lambda state, folder: saved({"model_state": state, "step": 4}, folder),
    "module": lambda state, folder: saved({"module": state, "buffer_names": [], "dp_world_size": 2}, folder),
    "net": lambda state, folder: saved({"net": state, "acc": 93.1, "epoch": 4}, folder),
    "weights": lambda state, folder: saved({"weights": state, "arch": "net"}, folder),
    "params_ema": lambda state, folder: saved({"params_ema": state}, folder),
    "nested": lambda state, folder: saved({"checkpoint": {"trainer": {"state_dict": state}}, "v": 1}, folder),
}


# Namings: each gives the state of a model under the names that a tool gives it.


def prefixed(prefix: str) -> Callable[[nn.Module], State]:
    return lambda net: {prefix + name: value for name, value in net.state_dict().items()}


def data_parallel(net: nn.Module) -> State:
    return dict(nn.DataParallel(net).state_dict())


def compiled(net: nn.Module) -> State:
    return dict(torch.compile(net).state_dict())


def compiled_part(net: nn.Module) -> State:
    """`torch.compile` of one part, which is so in the middle of names."""
    state = net.state_dict()
    return {name.replace("encoder.", "encoder._orig_mod."): value for name, value in state.items()}


def data_parallel_part(net: nn.Module) -> State:
    state = net.state_dict()
    return {name.replace("encoder.", "encoder.module."): value for name, value in state.items()}


def named_parts(net: nn.Module) -> State:
    """Parameters and buffers by the names that they have in a wrapped module."""
    persistent = {id(value) for value in net.state_dict(keep_vars=True).values()}
    parts = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        name: value.detach() for name, value in parts.items() if id(value) in persistent or "running" in name
    }


def checkpointed(net: nn.Module) -> State:
    """Activation checkpointing of each block; names as `named_parameters` gives them."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    names = {}
    for name, value in net.state_dict().items():
        parts = name.split(".")
        wrapped = [*parts[:2], "_checkpoint_wrapped_module", *parts[2:]] if parts[0] == "encoder" else parts
        names[".".join(wrapped)] = value
    # The wrapper itself calls its module so.
    probe = checkpoint_wrapper(nn.Linear(1, 1))
    assert "_checkpoint_wrapped_module.weight" in dict(nn.Module.named_parameters(probe))
    return names


def fully_sharded(net: nn.Module) -> State:
    """FSDP with its own names: the root and each block are wrapped."""
    names = {}
    for name, value in net.state_dict().items():
        parts = name.split(".")
        wrapped = [*parts[:2], "_fsdp_wrapped_module", *parts[2:]] if parts[0] == "encoder" else parts
        names[".".join(["_fsdp_wrapped_module", *wrapped])] = value
    return names


def tensorflow_norms(net: nn.Module) -> State:
    """`gamma` and `beta`, as early ports of BERT call the weights of norms."""
    new = {"norm.weight": "norm.gamma", "norm.bias": "norm.beta"}
    return {new.get(name, name): value for name, value in net.state_dict().items()}


NAMINGS: dict[str, Callable[[nn.Module], State]] = {
    "plain": lambda net: dict(net.state_dict()),
    "module.": data_parallel,
    "_orig_mod.": compiled,
    "_orig_mod. inside": compiled_part,
    "module. inside": data_parallel_part,
    "_fsdp_wrapped_module.": fully_sharded,
    "_checkpoint_wrapped_module.": checkpointed,
    "model.": prefixed("model."),
    "net.": prefixed("net."),
    "model.module.": lambda net: {f"model.{name}": value for name, value in data_parallel(net).items()},
    "base_model.model.": prefixed("base_model.model."),
    "state of a whole": prefixed("pipeline.stages.0."),
    "gamma and beta": tensorflow_norms,
}


def without_counters(state: Mapping[str, torch.Tensor]) -> State:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def cases(few: int) -> int:
    """How many generated cases to try: ``few``, or as many as REGRAFT_CASES says."""
    return int(os.environ.get("REGRAFT_CASES", few))
