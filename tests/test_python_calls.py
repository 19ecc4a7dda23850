"""How compiled modules are called: structures, memory, errors, NumPy alone, threads, state."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

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


# ------------------------------------------------------------------------------------ structures


class Structured(nn.Module):
    """Arguments and results of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(
        self, data: Any, mask: Tensor | None = None, double: bool = False, *, scale: float = 1.0
    ) -> dict[str, Any]:
        y = self.fc(data["x"]) * scale + data["more"][0] - data["more"][1][0]
        if mask is not None:
            y = torch.where(mask, y, 0.0)
        return {
            "out": y * 2 if double else y,
            "parts": (y[:, :1], [y.argmax(1), None], True, 3, "text", 1.5),
            "nothing": None,
        }


DATA = {"x": X, "more": [numbers(4, 6, seed=1), (numbers(6, seed=2),)]}
MASK = numbers(4, 6, seed=3) > 0


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((DATA,), {}),
        ((DATA, MASK, True), {"scale": 0.5}),
        ((DATA,), {"mask": MASK, "double": True}),
        ((), {"double": False, "data": DATA, "mask": None}),
        ((DATA, None), {}),
    ],
)
def test_arguments_and_results_of_all_structures(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    module = seeded(Structured)
    compiled = regraft.compile(module, args, kwarg_inputs=kwargs)
    assert compiled.report().is_whole
    agrees(compiled, module, *args, **kwargs)


def test_arguments_by_position_and_by_name() -> None:
    """As the module binds them, whichever way they were given when it was compiled."""

    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, first: Tensor, second: Tensor, *, third: Tensor) -> Tensor:
            return self.fc(first) - 2 * second + 3 * third

    module = seeded(Difference)
    a, b, c = numbers(4, 6, seed=1), numbers(4, 6, seed=2), numbers(4, 6, seed=3)
    examples = [
        ((a, b), {"third": c}),
        ((a,), {"third": c, "second": b}),
        ((), {"third": c, "second": b, "first": a}),
    ]
    wanted = pytorch(module, a, b, third=c)
    for args, kwargs in examples:
        compiled = regraft.compile(module, args, kwarg_inputs=kwargs)
        for other_args, other_kwargs in examples:
            assert_matches(compiled(*other_args, **other_kwargs), wanted)
        program = torch.export.export(module, args, kwargs)
        from_program = regraft.compile(program)
        for other_args, other_kwargs in examples:
            if len(other_args) <= len(args):
                assert_matches(from_program(*other_args, **other_kwargs), wanted)
                continue
            # The order of a program's keywords is its example's: positions are not guessed from it.
            with pytest.raises(regraft.InputError, match="structure"):
                from_program(*other_args, **other_kwargs)
    with pytest.raises(regraft.InputError, match="structure"):
        compiled(a, b, c)
    with pytest.raises(regraft.InputError, match="structure"):
        compiled(a, b, third=c, fourth=c)
    with pytest.raises(regraft.InputError, match="structure"):
        compiled(a, first=a, second=b, third=c)


def test_dicts_in_another_order() -> None:
    module = seeded(Structured)
    compiled = regraft.compile(module, (DATA,))
    agrees(compiled, module, dict(reversed(DATA.items())))
    for other in ({"x": X}, DATA | {"z": X}, DATA | {"more": tuple(DATA["more"])}, [X], X, None):
        with pytest.raises(regraft.InputError, match="structure"):
            compiled(other)


def test_constants_are_checked() -> None:
    """What was compiled in must be the same at each call: another value gives an error, never its result."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float, flag: bool, name: str | None) -> Tensor:
            return (x * scale if flag else x).tanh()

    module = seeded(Scaled)
    compiled = regraft.compile(module, (X, 2.0, True, "a"))
    agrees(compiled, module, X, 2.0, True, "a")
    for wrong in ((3.0, True, "a"), (2, True, "a"), (2.0, 1, "a"), (2.0, False, "a"), (2.0, True, None)):
        with pytest.raises(regraft.InputError, match="the program was compiled for"):
            compiled(X, *wrong)
    with pytest.raises(regraft.InputError, match="a tensor"):
        compiled(X, torch.tensor(2.0), True, "a")
    nan = regraft.compile(module, (X, float("nan"), False, None))
    agrees(nan, module, X, float("nan"), False, None)


def test_zeros_of_either_sign_are_two_constants() -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor, zero: float) -> Tensor:
            return torch.copysign(x, torch.tensor(zero)) + 1

    module = regraft.compile(Sign().eval(), (X, 0.0), min_block_size=1)
    agrees(module, Sign(), X, 0.0)
    with pytest.raises(regraft.InputError, match=r"compiled for 0\.0, found -0\.0"):
        module(X, -0.0)


def test_results_of_transformers() -> None:
    """Data classes, attention masks, sizes that change: encoders and decoders as their library calls them."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}
    bert = seeded(lambda: BertModel(BertConfig(num_hidden_layers=2, **small)))
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    batch, length = Dim("batch", min=1, max=8), Dim("length", min=2, max=20)
    axes = {0: batch, 1: length}
    compiled = regraft.compile(
        bert,
        kwarg_inputs={"input_ids": ids, "attention_mask": mask},
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )
    for rows, columns in ((2, 7), (1, 3), (5, 20)):
        ids = torch.randint(0, 50, (rows, columns), generator=torch.Generator().manual_seed(1))
        mask = (torch.arange(columns) < torch.arange(rows)[:, None] + 2).long()
        found = compiled(input_ids=ids, attention_mask=mask)
        wanted = pytorch(bert, input_ids=ids, attention_mask=mask)
        assert type(found) is type(wanted)
        assert_matches(found, wanted)
        assert torch.equal(found.last_hidden_state, found[0]) and set(found) == set(wanted)
        assert_matches(compiled(ids, mask), wanted)
    with pytest.raises(regraft.InputError):
        compiled(input_ids=ids, attention_mask=mask[:, 1:])

    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=32, use_cache=False)
    gpt2 = seeded(lambda: GPT2LMHeadModel(config))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    agrees(regraft.compile(gpt2, kwarg_inputs=inputs), gpt2, **inputs)


@pytest.mark.parametrize("settings", [{}, {"min_block_size": 1}, {"min_block_size": 100}])
def test_dynamic_shapes(settings: dict[str, Any]) -> None:
    def compute(layer: Function, x: Tensor, y: Tensor) -> Tensor:
        z = layer.fc(x)
        z = uncompiled(z) if settings else torch.tanh(z)
        return z.view(-1)[: x.shape[0]] + z.sum() / x.shape[0] + y[: x.shape[0]]

    module = seeded(lambda: Function(compute))
    b = Dim("b", min=2, max=9)
    axes = {"x": {0: b}, "more": ({0: 2 * b},)}
    compiled = regraft.compile(module, (X, numbers(8)), dynamic_shapes=axes, **settings)
    for size in (2, 5, 9):
        agrees(compiled, module, numbers(size, 6), numbers(2 * size))
    wrong = [(1, 6, 2), (10, 6, 20), (4, 5, 8), (4, 6, 10), (4, 6, 7)]
    for rows, columns, length in wrong:
        with pytest.raises(regraft.InputError):
            compiled(numbers(rows, columns), numbers(length))


class Sums(nn.Module):
    """A number that is read from a tensor, and a size that depends on values."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x * x.sum().item(), (x > 0).nonzero().float() * 2, x.relu() + 1


@pytest.mark.parametrize("size", [1, 5])
def test_values_that_sizes_depend_on(size: int) -> None:
    module = Sums().eval()
    compiled = regraft.compile(module, (X,), min_block_size=size)
    for x in (X, -X, X.abs(), -X.abs(), X * 3):
        agrees(compiled, module, x)


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


# ----------------------------------------------------------------------------------------- state


class Counting(nn.Module):
    """Keeps a sum and a count of what it has seen."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.cut = cut
        self.register_buffer("total", torch.zeros(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.fc(x))
        y = uncompiled(y) if self.cut else y
        before = self.total.clone()
        self.total.add_(y.sum(0))
        self.calls += 1
        return self.fc(y) + self.total / self.calls, before


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_buffers_that_the_module_writes_to(cut: bool, tmp_path: Path) -> None:
    module = seeded(lambda: Counting(cut))
    compiled = regraft.compile(module, (X,), min_block_size=1)
    assert compiled.report().is_whole != cut
    fresh = {name: value.clone() for name, value in module.state_dict().items()}

    def again() -> nn.Module:
        other = Counting(cut).eval()
        other.load_state_dict(fresh)
        return other

    for seed in range(3):
        agrees(compiled, module, numbers(4, 6, seed=seed))
    kept = compiled(X)
    pytorch(module, X)

    # A fork and what is loaded start from the beginning; the module itself goes on.
    fork = compiled.fork()
    agrees(fork, again(), X)
    regraft.save(compiled, tmp_path / "saved")
    agrees(regraft.load(tmp_path / "saved"), again(), X)
    agrees(compiled, module, X)

    # Other weights leave the state alone, a state dict replaces it, as in PyTorch.
    weights = {"fc.weight": numbers(6, 6, seed=7)}
    compiled.refit(weights, partial=True)
    module.load_state_dict(weights, strict=False)
    agrees(compiled, module, X)
    state = dict(module.state_dict()) | {"total": torch.ones(6), "calls": torch.tensor(5)}
    compiled.refit(state)
    module.load_state_dict(state)
    agrees(compiled, module, X)
    agrees(compiled, module, X)
    compiled.reset_state()
    module.load_state_dict(state)
    agrees(compiled, module, X)

    # What failed changed nothing, and outputs are nobody's state.
    with pytest.raises(regraft.InputError):
        compiled(numbers(3, 6))
    with pytest.raises(regraft.WeightsError):
        compiled.refit({"total": torch.ones(7), "calls": torch.tensor(0)}, partial=True)
    for output in kept:
        output.fill_(1e9)
    agrees(compiled, module, X)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_state_that_is_given_in_part(cut: bool) -> None:
    """It is right or refused, and never taken without effect."""
    module = seeded(lambda: Counting(cut))
    compiled = regraft.compile(module, (X,), min_block_size=1)
    agrees(compiled, module, X)
    given = {"total": torch.full((6,), 3.0)}
    if cut:
        compiled.refit(given, partial=True)
        module.total.fill_(3.0)
    else:
        with pytest.raises(regraft.WeightsError, match=r"as a whole(.|\n)*give calls"):
            compiled.refit(given, partial=True)
    agrees(compiled, module, X)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x[0].zero_(),
        lambda x: x.view(-1).mul_(2),
        lambda x: x.t().copy_(x.t() + 1),
    ],
    ids=["whole", "row", "view", "copy"],
)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_writes_to_inputs_arrive(write: Callable[[Tensor], Any], cut: bool, tmp_path: Path) -> None:
    def compute(layer: Function, x: Tensor) -> Tensor:
        write(x)
        return uncompiled(layer.fc(x)) if cut else layer.fc(x)

    module = seeded(lambda: Function(compute))
    compiled = regraft.compile(module, (X.clone(),), min_block_size=1)
    regraft.save(compiled, tmp_path / "saved")
    program = torch.export.export(module, (X.clone(),))
    with torch.no_grad():
        for one in (compiled, compiled.fork(), regraft.load(tmp_path / "saved")):
            ours, theirs = X.clone(), X.clone()
            assert_close([one(ours).numpy(), ours.numpy()], [module(theirs).numpy(), theirs.numpy()])
            assert not torch.equal(ours, X)
        assert torch.equal(X, regraft.refit_module_weights(compiled, program, (X,), verify_output=True) and X)


class Step(nn.Module):
    """A step that keeps what it made in a cache of its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Tensor, scale: float, *, at: Tensor) -> dict[str, Tensor]:
        cache.index_copy_(0, at, self.fc(x) * scale)
        return {"sum": cache.sum(0), "x": x * 2}


def test_caches_among_inputs_are_written_to() -> None:
    module, x, at = seeded(Step), numbers(1, 4), torch.tensor([1])
    compiled = regraft.compile(module, (x, torch.zeros(3, 4), 0.5), kwarg_inputs={"at": at}, min_block_size=1)
    with torch.no_grad():
        ours, theirs = torch.ones(3, 4), torch.ones(3, 4)
        for row in (0, 2):
            found, wanted = (
                m(x, c, 0.5, at=torch.tensor([row])) for m, c in ((compiled, ours), (module, theirs))
            )
            assert_close([found["sum"].numpy(), ours.numpy()], [wanted["sum"].numpy(), theirs.numpy()])
            assert torch.equal(found["x"], wanted["x"])
        memory = torch.zeros(12)
        with pytest.raises(regraft.InputError, match=r"input cache: .* shares its memory: give a copy"):
            compiled(memory[:4].view(1, 4), memory.view(3, 4), 0.5, at=at)
        with pytest.raises(regraft.InputError, match=r"input cache: .* give a tensor of PyTorch"):
            compiled(x, ours.numpy(), 0.5, at=at)
        mutable = regraft.MutableModule(module, min_block_size=1)
        mutable(x, ours, 0.5, at=at)
        module(x, theirs, 0.5, at=at)
        assert_close([ours.numpy()], [theirs.numpy()])


def test_many_threads_with_state() -> None:
    """Each call of an engine is one step of its state."""
    module = seeded(lambda: Counting(False))
    compiled = regraft.compile(module, (X,))
    threads = [threading.Thread(target=lambda: [compiled(X) for _ in range(25)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(100):
        pytorch(module, X)
    agrees(compiled, module, X)
