"""Where new weights come from (R-9)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comparing import assert_close, assert_same, same
from conftest import Cli, CommandFailed
from small import (
    Inputs,
    answers,
    arrays,
    compile_model,
    save_program,
    save_state,
    seeded,
)

State = Mapping[str, Tensor]

# ----------------------------------------------------------------------------- files of new weights


class Net(nn.Module):
    """Layers whose weights are packed, folded and looked up, with an int64 buffer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 36)
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(144, 5)
        with torch.no_grad():
            for tensor in (self.norm.weight, self.norm.running_var):
                tensor.copy_(torch.rand(4) + 0.5)
            for tensor in (self.norm.bias, self.norm.running_mean):
                tensor.copy_(torch.randn(4))
            self.norm.num_batches_tracked.fill_(7)

    def forward(self, tokens: Tensor) -> Tensor:
        image = self.embedding(tokens).view(-1, 1, 6, 6)
        return self.fc(torch.relu(self.norm(self.conv(image))).flatten(1))


TOKENS: Inputs = (torch.tensor([3, 0, 10, 7]),)


def halves(state: State) -> list[dict[str, Tensor]]:
    names = sorted(state)
    return [{name: state[name] for name in part} for part in (names[::2], names[1::2])]


def write_index(folder: Path, name: str, shards: Mapping[str, State]) -> Path:
    weight_map = {tensor: file for file, shard in shards.items() for tensor in shard}
    index = folder / name
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def another_program(cli: Cli, model: nn.Module) -> Path:
    return save_program(cli, model, TOKENS)


def program_of_another_graph(cli: Cli, model: nn.Module) -> Path:
    """Only its tensors matter: it computes something else with them."""

    class Other(Net):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).softmax(1) + 1

    other = Other().eval()
    other.load_state_dict(model.state_dict())
    return save_program(cli, other, TOKENS)


def safetensors_file(cli: Cli, model: nn.Module) -> Path:
    path = cli.path("weights", ".safetensors")
    save_file(model.state_dict(), path)
    return path


def sharded_safetensors(cli: Cli, model: nn.Module) -> Path:
    folder = cli.path("sharded")
    folder.mkdir()
    shards = {f"model-{n}-of-2.safetensors": half for n, half in enumerate(halves(model.state_dict()), 1)}
    for name, shard in shards.items():
        save_file(shard, folder / name)
    return write_index(folder, "model.safetensors.index.json", shards)


def torch_pt(cli: Cli, model: nn.Module) -> Path:
    path = cli.path("state", ".pt")
    torch.save(model.state_dict(), path)
    return path


def torch_bin(cli: Cli, model: nn.Module) -> Path:
    path = cli.path("pytorch_model", ".bin")
    torch.save(model.state_dict(), path)
    return path


def torch_parameters(cli: Cli, model: nn.Module) -> Path:
    """The values are `nn.Parameter`s, as in a state dict that was taken with `keep_vars`."""
    state = model.state_dict(keep_vars=True)
    assert isinstance(state["fc.weight"], nn.Parameter)
    return save_state(cli, state)


def torch_wrapped(cli: Cli, model: nn.Module) -> Path:
    return save_state(cli, {"state_dict": model.state_dict(), "epoch": 3})


def sharded_bin(cli: Cli, model: nn.Module) -> Path:
    folder = cli.path("sharded")
    folder.mkdir()
    shards = {f"pytorch_model-{n}-of-2.bin": half for n, half in enumerate(halves(model.state_dict()), 1)}
    for name, shard in shards.items():
        torch.save(shard, folder / name)
    return write_index(folder, "pytorch_model.bin.index.json", shards)


def onnx_raw(cli: Cli, model: nn.Module) -> Path:
    return write_onnx(cli.path("weights", ".onnx"), model.state_dict(), raw=True)


def onnx_numbers(cli: Cli, model: nn.Module) -> Path:
    return write_onnx(cli.path("weights", ".onnx"), model.state_dict(), raw=False)


def write_onnx(path: Path, state: State, *, raw: bool) -> Path:
    """A model whose graph has nothing but initializers: the messages of onnx.proto, field by field."""

    def tensor(name: str, value: Tensor) -> bytes:
        array = value.detach().numpy()
        dtypes = {"float32": 1, "int64": 7}
        fields = [integer(1, size) for size in array.shape]
        fields += [integer(2, dtypes[array.dtype.name]), delimited(8, name.encode())]
        if raw:
            fields.append(delimited(9, array.tobytes()))
        elif array.dtype == np.float32:
            fields.append(delimited(4, array.tobytes()))  # packed float_data
        else:
            fields.append(delimited(7, b"".join(varint(int(n)) for n in array.ravel())))
        return b"".join(fields)

    initializers = b"".join(delimited(5, tensor(name, value)) for name, value in state.items())
    graph = delimited(2, b"net") + initializers
    opset = delimited(1, b"") + integer(2, 18)
    path.write_bytes(integer(1, 10) + delimited(2, b"tests") + delimited(7, graph) + delimited(8, opset))
    return path


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def integer(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def delimited(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


FILES: list[Callable[[Cli, nn.Module], Path]] = [
    another_program,
    program_of_another_graph,
    safetensors_file,
    sharded_safetensors,
    torch_pt,
    torch_bin,
    torch_parameters,
    torch_wrapped,
    sharded_bin,
    onnx_raw,
    onnx_numbers,
]


@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__)
def test_r_9_every_kind_of_file(cli: Cli, write: Callable[[Cli, nn.Module], Path]) -> None:
    first, second = seeded(Net, 0), seeded(Net, 1)
    engine = compile_model(cli, first, TOKENS)
    before = cli.run(engine, arrays(TOKENS))
    built = compile_model(cli, second, TOKENS)
    wanted = cli.run(built, arrays(TOKENS))
    assert_close(wanted, answers(second, TOKENS))
    assert not same(before, wanted)

    weights = write(cli, second)
    refitted, report = cli.refit(engine, weights)
    assert report["applied"]
    assert_same(cli.run(refitted, arrays(TOKENS)), wanted)
    assert refitted.read_bytes() == built.read_bytes()

    # The same file also binds an engine without weights.
    bound = cli.bind(compile_model(cli, first, TOKENS, "stripped"), weights)
    assert_same(cli.run(bound, arrays(TOKENS)), wanted)


def test_r_9_a_shard_that_is_not_there(cli: Cli) -> None:
    model = seeded(Net, 1)
    engine = compile_model(cli, seeded(Net, 0), TOKENS)
    index = sharded_safetensors(cli, model)
    (index.parent / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CommandFailed, match=r"exit status 1\n(.|\n)*model-2-of-2.safetensors"):
        cli.refit(engine, index)


def test_r_9_a_pickle_is_not_executed(cli: Cli) -> None:
    class Opens:
        def __reduce__(self) -> tuple:
            return Path.touch, (cli.folder / "executed",)

    engine = compile_model(cli, seeded(Net, 0), TOKENS)
    hostile = save_state(cli, dict(seeded(Net, 1).state_dict()) | {"fc.bias": Opens()})
    with pytest.raises(CommandFailed, match="exit status 1\n"):
        cli.refit(engine, hostile)
    assert not (cli.folder / "executed").exists()
