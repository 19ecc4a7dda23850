"""What stands in the nodes of an ONNX model and not among its initializers: refitted, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from comparing import assert_close, assert_same
from conftest import Cli, CommandFailed

X = np.array([[1.0, -2.0, 3.0], [0.5, 0.25, -1.0]], np.float32)
Values = tuple[float, float, float]
A: Values = (0.5, 2.0, -1.0)
B: Values = (1.5, -3.0, 0.25)


def constant(name: str, values: Values, form: str = "value") -> onnx.NodeProto:
    array = np.array(values, np.float32)
    given = numpy_helper.from_array(array, "") if form == "value" else list(values)
    return helper.make_node("Constant", [], [name], **{form: given})


def info(name: str, shape: list[int], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray], functions=()) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    y = info("y", [2, 3])
    graph = helper.make_graph(nodes, "g", [info("x", [2, 3]), info("n", [], TensorProto.INT64)], [y], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    onnx.checker.check_model(made)
    return made


def in_a_node(values: Values) -> onnx.ModelProto:
    return model([constant("c", values), helper.make_node("Mul", ["x", "c"], ["y"])], {})


def of_one_element(values: Values) -> onnx.ModelProto:
    """The bias of one channel."""
    bias = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", 1, [1], values[:1]))
    return model([bias, helper.make_node("Add", ["x", "c"], ["y"])], {})


def as_floats(values: Values) -> onnx.ModelProto:
    nodes = [constant("c", values, "value_floats"), helper.make_node("Mul", ["x", "c"], ["y"])]
    return model(nodes, {})


def in_branches(values: Values) -> onnx.ModelProto:
    """A constant and an initializer in each branch, under the same names."""

    def branch(name: str, sign: float) -> onnx.GraphProto:
        signed = (sign * values[0], sign * values[1], sign * values[2])
        w = numpy_helper.from_array(np.array(signed, np.float32), "w")
        nodes = [
            constant("c", signed),
            helper.make_node("Mul", ["x", "c"], [f"{name}_m"]),
            helper.make_node("Add", [f"{name}_m", "w"], [f"{name}_y"]),
        ]
        return helper.make_graph(nodes, name, [], [info(f"{name}_y", [2, 3])], [w])

    nodes = [
        helper.make_node("Cast", ["n"], ["b"], to=TensorProto.BOOL),
        helper.make_node("If", ["b"], ["y"], then_branch=branch("one", 1.0), else_branch=branch("two", -1.0)),
    ]
    return model(nodes, {})


def in_a_loop(values: Values) -> onnx.ModelProto:
    """Read in each of three rounds."""
    nodes = [
        constant("c", values),
        helper.make_node("Add", ["state", "c"], ["next"]),
        helper.make_node("Identity", ["going"], ["on"]),
    ]
    ins = [info("round", [], TensorProto.INT64), info("going", [], TensorProto.BOOL), info("state", [2, 3])]
    body = helper.make_graph(nodes, "body", ins, [info("on", [], TensorProto.BOOL), info("next", [2, 3])])
    loop = helper.make_node("Loop", ["rounds", "always", "x"], ["y"], body=body)
    return model([loop], {"rounds": np.int64(3), "always": np.bool_(True)})


def in_a_function(values: Values) -> onnx.ModelProto:
    """In the body of a function that is called twice."""
    opsets = [helper.make_opsetid("", 17)]
    nodes = [constant("c", values), helper.make_node("Mul", ["a", "c"], ["b"])]
    scale = helper.make_function("ours", "Scale", ["a"], ["b"], nodes, opsets)
    calls = [
        helper.make_node("Scale", ["x"], ["h"], domain="ours"),
        helper.make_node("Scale", ["h"], ["y"], domain="ours"),
    ]
    return model(calls, {}, [scale])


def in_initializers(values: Values) -> onnx.ModelProto:
    """Whole numbers that are data: the rows that are taken."""
    rows = np.array([int(values[0] > 1), 0], np.int64)
    return model([helper.make_node("Gather", ["x", "rows"], ["y"])], {"rows": rows})


def answer(made: onnx.ModelProto, n: int) -> list[np.ndarray]:
    return [np.asarray(v) for v in ReferenceEvaluator(made).run(None, {"x": X, "n": np.int64(n)})]


FORMS = [in_a_node, of_one_element, as_floats, in_branches, in_a_loop, in_a_function, in_initializers]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_what_stands_in_nodes_is_refitted(cli: Cli, form: Callable[[Values], onnx.ModelProto]) -> None:
    first, second = cli.path("a", ".onnx"), cli.path("b", ".onnx")
    onnx.save(form(A), first)
    onnx.save(form(B), second)
    engine = cli.compile(first)
    refitted, _ = cli.refit(engine, second)
    bound = cli.bind(cli.compile(first, "stripped"), second)
    for n in (0, 1):
        feeds = {"x": X, "n": np.array(n, np.int64)}
        assert_close(cli.run(engine, feeds), answer(form(A), n))
        assert_close(cli.run(refitted, feeds), answer(form(B), n))
        assert_same(cli.run(bound, feeds), cli.run(refitted, feeds))
        assert_same(cli.run(cli.compile(second), feeds), cli.run(refitted, feeds))


def number_in_a_node(value: float) -> onnx.ModelProto:
    scalar = helper.make_node("Constant", [], ["c"], value_float=value)
    return model([scalar, helper.make_node("Mul", ["x", "c"], ["y"])], {"w": np.float32([1.0])})


def shape_of_an_initializer(value: float) -> onnx.ModelProto:
    shape = np.array([2, 3] if value < 1 else [-1, 3], np.int64)
    return model([helper.make_node("Reshape", ["x", "c"], ["y"])], {"c": shape})


def number_in_a_branch(value: float) -> onnx.ModelProto:
    def branch(name: str) -> onnx.GraphProto:
        c = helper.make_node("Constant", [], [f"c_{name}"], value_float=value)
        nodes = [c, helper.make_node("Mul", ["x", f"c_{name}"], [name])]
        return helper.make_graph(nodes, name, [], [info(name, [2, 3])])

    nodes = [
        helper.make_node("Cast", ["n"], ["b"], to=TensorProto.BOOL),
        helper.make_node("If", ["b"], ["y"], then_branch=branch("one"), else_branch=branch("two")),
    ]
    return model(nodes, {})


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (number_in_a_node, r"c +expected 0\.5, found 1\.5: it was compiled into the program"),
        (shape_of_an_initializer, r"c +expected \[2, 3\], found \[-1, 3\]"),
        (number_in_a_branch, r"c_one +expected 0\.5, found 1\.5"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_compiled_in_is_refused_when_it_differs(
    cli: Cli, form: Callable[[float], onnx.ModelProto], says: str
) -> None:
    first, same, other = (cli.path(name, ".onnx") for name in ("first", "same", "other"))
    for path, value in [(first, 0.5), (same, 0.5), (other, 1.5)]:
        onnx.save(form(value), path)
    engine = cli.compile(first)
    cli.refit(engine, same)
    with pytest.raises(CommandFailed, match=says) as refused:
        cli.refit(engine, other)
    assert "the file is of another program than the engine: compile it" in str(refused.value)
    with pytest.raises(CommandFailed, match=says):
        cli.bind(cli.compile(first, "stripped"), other)
    with pytest.raises(CommandFailed, match=says):
        cli.call("check", engine, other)


def test_a_program_with_other_names_is_refused(cli: Cli) -> None:
    first, renamed = cli.path("first", ".onnx"), cli.path("renamed", ".onnx")
    made = number_in_a_node(0.5)
    onnx.save(made, first)
    made.graph.node[0].output[0] = made.graph.node[1].input[1] = "d"
    onnx.save(made, renamed)
    engine = cli.compile(first)
    with pytest.raises(CommandFailed, match=r"d +unknown: the engine has no such source"):
        cli.refit(engine, renamed)


def test_sparse_constants_are_refused(cli: Cli, tmp_path: Path) -> None:
    values = helper.make_tensor("", TensorProto.FLOAT, [1], [2.0])
    places = helper.make_tensor("", TensorProto.INT64, [1], [1])
    sparse = helper.make_sparse_tensor(values, places, [3])
    nodes = [
        helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]
    program, weights = tmp_path / "sparse.onnx", tmp_path / "dense.onnx"
    onnx.save(model(nodes, {}), program)
    onnx.save(in_a_node(A), weights)
    with pytest.raises(CommandFailed, match="a sparse constant, which is not read"):
        cli.compile(program)
    with pytest.raises(CommandFailed, match="a sparse constant, which is not read"):
        cli.refit(cli.compile(weights), program)


def test_a_delta_does_not_lose_them(cli: Cli) -> None:
    first, second = cli.path("a", ".onnx"), cli.path("b", ".onnx")
    onnx.save(in_a_node(A), first)
    onnx.save(in_a_node(B), second)
    for base in (first, cli.compile(first)):
        with pytest.raises(CommandFailed, match="1 constants, such as c, which a delta does not hold"):
            cli.call("delta", base, second, "-o", cli.path("delta", ".rgd"))
