"""How compiled modules are called: kinds of inputs, memory, errors, NumPy alone, threads."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from comparing import assert_close, assert_same
from python_checks import Function, agrees, arrays, assert_matches, bits, pytorch, succeeds
from small import numbers, seeded, uncompiled

X = numbers(4, 6)


def whole(layer: Function, x: Tensor) -> Tensor:
    return torch.relu(layer.fc(x)) * layer.w


def cut(layer: Function, x: Tensor) -> Tensor:
    return layer.fc(uncompiled(layer.fc(x))) * layer.w


# Compiled whole, cut by an operator that stays in PyTorch, or all in PyTorch: calls must not tell.
FORMS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "whole": (whole, {}),
    "cut": (cut, {"min_block_size": 1}),
    "in_pytorch": (cut, {"min_block_size": 100}),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> tuple[regraft.Module, nn.Module]:
    compute, settings = FORMS[request.param]
    module = seeded(lambda: Function(compute))
    return regraft.compile(module, (X,), **settings), module


# ---------------------------------------------------------------------------------------- inputs


def test_inputs_that_are_not_dense(form: tuple[regraft.Module, nn.Module]) -> None:
    compiled, module = form
    wide = numbers(8, 12)
    for name, x in {
        "transposed": numbers(6, 4).t(),
        "expanded": numbers(1, 6).expand(4, 6),
        "of one element": torch.tensor(0.5).expand(4, 6),
        "every other": wide[::2, ::2],
        "later": wide[3:7, 5:11],
        "flipped": X.flip(0),
        "negated": torch.complex(X, X + 1).conj().imag,
        "strided": numbers(60).as_strided((4, 6), (3, 7), 2),
        "channels": numbers(4, 6, 1, 1).to(memory_format=torch.channels_last)[..., 0, 0],
        "inference": torch.inference_mode()(lambda: X * 2)(),
        "subclass": X.as_subclass(type("Named", (Tensor,), {})),
    }.items():
        plain = torch.empty(4, 6).copy_(x)
        assert torch.equal(plain, x.as_subclass(Tensor)), name
        # PyTorch's own products differ with strides.
        if compiled.models:
            assert bits(compiled(x)) == bits(compiled(plain)), name
        agrees(compiled, module, x)


def test_arrays_of_numpy(form: tuple[regraft.Module, nn.Module]) -> None:
    compiled, module = form
    array = X.numpy()
    fixed = array.copy()
    fixed.flags.writeable = False
    wanted = pytorch(module, X)
    for given in (array, fixed, np.asfortranarray(array), array[::-1][::-1], np.repeat(array, 2, 1)[:, ::2]):
        assert_matches(compiled(given), wanted)
    assert_matches(compiled(array[::-1, ::-1]), pytorch(module, X.flip(0, 1)))


def wrong_inputs() -> dict[str, tuple[Any, str]]:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(4, 6)
    return {
        "rank": (X[0], r"expected f32\[4, 6\], found f32\[6\]"),
        "shape": (numbers(4, 5), r"expected f32\[4, 6\], found f32\[4, 5\]"),
        "broadcast": (numbers(1, 6), r"expected f32\[4, 6\], found f32\[1, 6\]"),
        "larger": (numbers(8, 6), r"expected f32\[4, 6\], found f32\[8, 6\]"),
        "double": (X.double(), r"expected f32\[4, 6\], found f64\[4, 6\]"),
        "half": (X.half(), r"expected f32\[4, 6\], found f16\[4, 6\]"),
        "whole numbers": (X.long(), r"expected f32\[4, 6\], found i64\[4, 6\]"),
        "bool": (X > 0, r"expected f32\[4, 6\], found bool\[4, 6\]"),
        "complex": (X + 1j, "complex64"),
        "meta": (X.to("meta"), "on the CPU, found one on meta"),
        "fake": (fake, "expected a plain tensor, found a FakeTensor"),
        "sparse": (X.to_sparse(), "expected a dense tensor"),
        "csr": (X.to_sparse_csr(), "expected a dense tensor"),
        "quantized": (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "qint8|QInt8|dense|not supported"),
        "text": ("x", "expected a tensor .*, found str"),
        "nothing": (None, "expected a tensor .*, found NoneType"),
        "number": (1.5, r"expected f32\[4, 6\], found f64\[\]"),
        "object": (object(), "expected a tensor .*, found object"),
        "strings": (np.array(["a"]), "array|str|ndarray"),
        "other bytes": (X.numpy().astype(">f4"), "supported|PyTorch|byte"),
        "list": ([1.0, 2.0], "found list"),
        "list of tensors": (list(X), "found list"),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize")
def test_inputs_that_are_refused(form: tuple[regraft.Module, nn.Module]) -> None:
    compiled, module = form
    for value, text in wrong_inputs().values():
        with pytest.raises(regraft.InputError, match=text) as caught:
            compiled(value)
        assert isinstance(caught.value, ValueError)
    agrees(compiled, module, X)


def test_empty_and_single_tensors() -> None:
    def compute(layer: Function, x: Tensor, k: Tensor, none: Tensor) -> tuple[Tensor, ...]:
        return torch.cat((layer.fc(x), none)), (x * k).sum(), k + 1, none.sum(0), none

    module = seeded(lambda: Function(compute))
    args = (X, torch.tensor(2.5), torch.empty(0, 6))
    agrees(regraft.compile(module, args), module, *args)
    args = (torch.empty(0, 6), torch.tensor(2.5), torch.empty(0, 6))
    compiled = regraft.compile(module, args)
    agrees(compiled, module, *args)
    assert compiled(*args)[1].shape == ()


def test_bool_and_int64_inputs() -> None:
    def compute(layer: Function, index: Tensor, mask: Tensor, narrow: Tensor) -> tuple[Tensor, ...]:
        chosen = layer.fc.weight[index]
        return torch.where(mask[:, None], chosen, 0.0), index * 2**40, ~mask, mask & (index > 0), narrow + 1

    module = seeded(lambda: Function(compute))
    index, mask = torch.tensor([0, -1, 5, -6]), torch.tensor([True, False, True, True])
    narrow = torch.tensor([127, -128], dtype=torch.int8)
    compiled = regraft.compile(module, (index, mask, narrow))
    agrees(compiled, module, index, mask, narrow)
    for outside in (torch.tensor([0, 1, 6, 0]), torch.tensor([-7, 0, 0, 0]), torch.tensor([2**62, 0, 0, 0])):
        with pytest.raises(regraft.InputError):
            compiled(outside, mask, narrow)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_modules_of_other_float_types(dtype: torch.dtype) -> None:
    def compute(layer: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        return layer.fc(x).softmax(-1) * layer.w, x.float().sum(1)

    module = seeded(lambda: Function(compute)).to(dtype)
    compiled = regraft.compile(module, (X.to(dtype),))
    agrees(compiled, module, X.to(dtype))
    with pytest.raises(regraft.InputError):
        compiled(X)


# ------------------------------------------------------------------------------- gradients and transforms


def test_gradients_are_refused(form: tuple[regraft.Module, nn.Module]) -> None:
    compiled, module = form
    wanted = X.clone().requires_grad_()
    with pytest.raises(regraft.GradientError, match="requires a gradient"):
        compiled(wanted)
    with pytest.raises(regraft.GradientError):
        compiled(nn.Parameter(X))
    for without in (torch.no_grad(), torch.inference_mode()):
        with without:
            found = compiled(wanted)
        assert not found.requires_grad and found.grad_fn is None
    agrees(compiled, module, wanted.detach())
    assert not compiled(X).requires_grad


def test_transforms_of_functions_are_refused(form: tuple[regraft.Module, nn.Module]) -> None:
    """A tangent that is dropped is a derivative of zero."""
    from torch.autograd import forward_ad

    compiled, module = form
    transforms: list[Callable[[], Any]] = [
        lambda: torch.func.vmap(compiled)(torch.stack((X, X))),
        lambda: torch.func.grad(lambda x: compiled(x).sum())(X),
        lambda: torch.func.jvp(compiled, (X,), (X,)),
    ]
    for transform in transforms:
        with pytest.raises(regraft.GradientError):
            transform()
    with forward_ad.dual_level(), pytest.raises(regraft.GradientError, match="tangent"):
        compiled(forward_ad.make_dual(X, X))
    agrees(compiled, module, X)


def test_autocast_changes_nothing(form: tuple[regraft.Module, nn.Module]) -> None:
    compiled, _ = form
    wanted = bits(compiled(X))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compiled(X)
    assert bits(found) == wanted


# --------------------------------------------------------------------------------------- outputs


def test_outputs_own_their_memory() -> None:
    """They stay right when the module is gone, and writing to them changes nothing else."""

    def compute(layer: Function, x: Tensor) -> tuple[Tensor, ...]:
        y = layer.fc(x)
        return y, layer.w, x, y.t(), layer.fc.weight[1:], x[0]

    def with_cut(layer: Function, x: Tensor) -> tuple[Tensor, ...]:
        y = uncompiled(layer.fc(uncompiled(x)))
        return y, layer.w, x, x.t(), layer.fc.weight[1:], layer.w.view(2, 3), x[0]

    for build, settings in (
        (lambda: Function(compute), {}),
        (lambda: Function(with_cut), {"min_block_size": 1}),
        (lambda: Function(with_cut), {"min_block_size": 100}),
    ):
        module = seeded(build)
        compiled = regraft.compile(module, (X,), **settings)
        x = X.clone()
        first = compiled(x)
        wanted = bits(first)
        for output in first:
            output.fill_(float("nan"))
        assert torch.equal(x, X), "an output is the memory of an input"
        second = compiled(x)
        assert bits(second) == wanted, "an output is memory of the module"
        x.zero_()
        compiled(numbers(4, 6, seed=5))
        compiled.refit({"w": torch.ones(6)}, partial=True)
        del compiled, module
        gc.collect()
        assert bits(second) == wanted


def test_module_is_compiled_as_it_was() -> None:
    """Editing the original afterwards changes nothing."""
    for compute, settings in FORMS.values():
        module = seeded(lambda compute=compute: Function(compute))
        compiled = regraft.compile(module, (X,), **settings)
        before = bits(compiled(X))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(3)
        assert bits(compiled(X)) == before
        assert bits(compiled.fork()(X)) == before


# ------------------------------------------------------------------------------------- without PyTorch


def test_engine_files_with_numpy_alone(tmp_path: Path) -> None:
    """Run, refitted, saved and loaded where PyTorch cannot be imported."""
    from safetensors.torch import save_file

    module, other = seeded(lambda: Function(whole), 0), seeded(lambda: Function(whole), 1)
    regraft.save(regraft.compile(module, (X,)), tmp_path / "module")
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    np.save(tmp_path / "x.npy", X.numpy())
    said = succeeds(
        """
        import sys
        from pathlib import Path
        import numpy as np
        import regraft

        folder = Path(sys.argv[1])
        x = np.load(folder / "x.npy")
        model = regraft.load(folder / "module" / "0.rgf")
        [y] = model.run([x])
        held = np.from_dlpack(y)
        np.save(folder / "a.npy", held)
        assert np.array_equal(np.from_dlpack(model.run([x[::-1][::-1]])[0]), held)
        for wrong in ([], [x, x], [x[:2]], [x.astype("f8")], [x.astype(">f4")], ["x"], [None]):
            try:
                model.run(wrong)
            except regraft.InputError as error:
                assert str(error)
            else:
                raise AssertionError(wrong)
        model.refit(regraft.StateDict.open(folder / "other.safetensors"))
        np.save(folder / "b.npy", np.from_dlpack(model.run([x])[0]))
        model.save(folder / "again.rgf")
        model.refit({"w": np.zeros(6, "f4")[::-1]}, partial=True)
        assert not np.from_dlpack(model.run([x])[0]).any()
        again = regraft.load(folder / "again.rgf")
        np.save(folder / "c.npy", np.from_dlpack(again.run([x])[0]))
        np.save(folder / "d.npy", held)
        for name in ("compile", "Module", "MutableModule"):
            try:
                getattr(regraft, name)
            except ImportError:
                pass
            else:
                raise AssertionError(name)
        print(repr(again).split("(")[0], sorted(m for m in sys.modules if m.startswith("torch")))
        """,
        tmp_path,
        torch=False,
    )
    assert said.split() == ["regraft.Model", "['torch']"]
    a, b, c, d = (np.load(tmp_path / f"{name}.npy") for name in "abcd")
    assert_close([a, b], [*arrays(pytorch(module, X)), *arrays(pytorch(other, X))])
    assert_same([b, d], [c, a])


def test_models_take_what_has_dlpack() -> None:
    module = seeded(lambda: Function(whole))
    [model] = regraft.compile(module, (X,)).models

    class Foreign:
        def __dlpack__(self, **options: Any) -> Any:
            return X.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return X.__dlpack_device__()

    results = [np.from_dlpack(model.run([given])[0]) for given in (X, X.numpy(), Foreign())]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    array = model.run([X])[0]
    assert (array.dtype, array.shape, array.nbytes) == ("f32", (4, 6), 96)
    assert bits(torch.from_dlpack(array)) == bits(torch.from_numpy(results[0]))
    # An output is an input as it is.
    assert model.run([array])[0].shape == (4, 6)


# --------------------------------------------------------------------------------------- threads


def test_calls_from_many_threads(form: tuple[regraft.Module, nn.Module]) -> None:
    compiled, module = form
    inputs = [numbers(4, 6, seed=seed) for seed in range(8)]
    wanted = [bits(compiled(x)) for x in inputs]
    for x in inputs:
        agrees(compiled, module, x)

    def call(index: int) -> bool:
        return bits(compiled(inputs[index % 8])) == wanted[index % 8]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(300)))
