"""Writes the files that the reader of `torch.save` is tested with, beside this script.

    python make_files.py

Needs PyTorch. `expected` of the tests says what stands in them; the evil pickle would create a file if it
were loaded.
"""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[3] / "tests"))
from checkpoints import big_endian, tar  # noqa: E402


def plain():
    base = torch.arange(12, dtype=torch.float32)
    return {
        "f32": base.reshape(3, 4),
        "f64": torch.tensor([0.1, -2.5], dtype=torch.float64),
        "f16": torch.tensor([1.5, -0.25], dtype=torch.float16),
        "bf16": torch.tensor([1.5, 256.0], dtype=torch.bfloat16),
        "i64": torch.tensor([-(2**40), 7]),
        "i32": torch.tensor([-5, 6], dtype=torch.int32),
        "i16": torch.tensor([-300, 300], dtype=torch.int16),
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(42),
        "empty": torch.zeros(0, 5),
        "transposed": base.reshape(3, 4).t(),
        "row": base.reshape(3, 4)[1],
        "column": base.reshape(3, 4)[:, 2],
        "broadcast": torch.tensor([3.0]).expand(2, 3),
        "alias": base.reshape(3, 4),
    }


def module():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(6.0).reshape(2, 3))
        net[0].bias.copy_(torch.tensor([-1.0, 1.0]))
    return net


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch regraft_was_here",)


def with_pickle(data):
    """An archive of `torch.save` whose pickle is `data`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in [("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")]:
            archive.writestr(zipfile.ZipInfo(f"evil/{name}"), content)
    return out.getvalue()


def main():
    net = module()
    state = net.state_dict()
    optimizer = torch.optim.Adam(net.parameters())
    files = {
        "plain.pt": plain(),
        "module.pth": state,
        "parameters.pt": dict(net.named_parameters()),
        "checkpoint.pt": {"epoch": 3, "state_dict": state, "optimizer": optimizer.state_dict(), "args": None},
        "two_states.pt": {"model": {"a": torch.zeros(1)}, "state_dict": {"a": torch.zeros(1)}},
        "nothing.pt": OrderedDict(),
        "not_a_dict.pt": [torch.zeros(1)],
        "number_inside.pt": {"a": torch.zeros(1), "b": 3},
        "float8.pt": {"w8": torch.zeros(2, dtype=torch.float8_e4m3fn)},
        "quantized.pt": {"wq": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)},
    }
    for name, content in files.items():
        torch.save(content, HERE / name)
    torch.save({"a": torch.tensor([1.0, 2.0])}, HERE / "protocol4.pt", pickle_protocol=4)
    torch.save(torch.nn.ReLU(), HERE / "whole_module.pt")
    torch.save({"a": torch.ones(1)}, HERE / "legacy.bin", _use_new_zipfile_serialization=False)
    small = {
        "a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "b": torch.tensor([-7, 1 << 40]),
        "h": torch.tensor(1.5).half(),
    }
    for write, name in ((tar, "tar.pt"), (big_endian, "big_endian.pt")):
        write(small, HERE).rename(HERE / name)
    (HERE / "evil.pt").write_bytes(with_pickle(pickle.dumps({"a": Evil()}, protocol=2)))


if __name__ == "__main__":
    main()
