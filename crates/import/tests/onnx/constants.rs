//! Tensors that stand in nodes, in graphs inside of them and in functions: which sources they are, and what is kept of them.

use regraft_import::Imported;

use crate::{
    floats, imported, info, ints, model, node, text_field,
    wire::{message, number},
};

/// An attribute of type `kind` whose field `field` holds `content`.
fn attribute(name: &str, kind: i64, content: &[u8]) -> Vec<u8> {
    message(5, &[text_field(1, name), content.to_vec(), number(20, kind)].concat())
}

/// A node that makes `output` of nothing.
fn constant(output: &str, attribute: &[u8]) -> Vec<u8> {
    message(1, &[text_field(2, output), text_field(4, "Constant"), attribute.to_vec()].concat())
}

/// The attribute `value` with a tensor of floats.
fn value(dims: &[i64], values: &[f32]) -> Vec<u8> {
    let tensor = floats("", dims, values);
    // A field of a graph with one byte of number and one of length.
    attribute("value", 4, &message(5, &tensor[2..]))
}

fn numbers(values: &[f32]) -> Vec<u8> {
    message(7, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

fn float(value: f32) -> Vec<u8> {
    [vec![2 << 3 | 5], value.to_le_bytes().to_vec()].concat()
}

/// The sources that are not weights: name, whether it is a slot's, and what was compiled in.
fn constants(imported: &Imported) -> Vec<(&str, Option<&str>)> {
    let sources = imported.graph.sources.iter().filter(|source| !source.kind.in_state_dict());
    sources.map(|source| (source.name.as_str(), source.folded.as_deref())).collect()
}

#[test]
fn constants_are_sources_and_numbers_are_compiled_in() {
    let graph = [
        constant("table", &value(&[2], &[1., 2.])),
        constant("more", &attribute("value_floats", 6, &numbers(&[3., 4.]))),
        constant("half", &attribute("value_float", 1, &float(0.5))),
        constant("one", &value(&[1], &[1.])),
        constant("shape", &attribute("value_ints", 7, &[number(8, 1), number(8, 2)].concat())),
        node("Add", &["x", "table"], "a", &[]),
        node("Add", &["a", "more"], "b", &[]),
        node("Mul", &["b", "half"], "c", &[]),
        node("Mul", &["c", "one"], "d", &[]),
        node("Reshape", &["d", "shape"], "y", &[]),
        info(11, "x", &[2]),
        info(12, "y", &[1, 2]),
    ];
    let imported = imported(&model(&graph, 17)).expect("a program");
    let expected = [("table", None), ("more", None), ("half", Some("0.5")), ("one", None), ("shape", Some("[1, 2]"))];
    assert_eq!(constants(&imported), expected);
    // Every source has its value.
    assert!(imported.weights.iter().all(Option::is_some));
}

#[test]
fn initializers_that_shapes_are_taken_from_are_compiled_in() {
    let graph = [
        node("Reshape", &["x", "shape"], "r", &[]),
        node("Gather", &["r", "places"], "y", &[]),
        ints("shape", &[2, 1]),
        ints("places", &[1, 0]),
        info(11, "x", &[2]),
        info(12, "y", &[2, 1]),
    ];
    let imported = imported(&model(&graph, 17)).expect("a program");
    assert_eq!(constants(&imported)[0], ("shape", Some("[2, 1]")));
    assert_eq!(constants(&imported)[1].0, "places");
}

/// A graph that adds a constant `c` to `x`, as an attribute.
fn branch(name: &str, c: &[f32]) -> Vec<u8> {
    let graph =
        [constant("c", &value(&[2], c)), node("Add", &["x", "c"], "sum", &[]), message(12, &text_field(1, "sum"))];
    attribute(name, 5, &message(6, &graph.concat()))
}

#[test]
fn tensors_of_branches_are_called_by_their_branch() {
    let mut inner = vec![text_field(1, "b"), text_field(2, "y"), text_field(4, "If")];
    inner.extend([branch("then_branch", &[1., 2.]), branch("else_branch", &[3., 4.])]);
    let condition =
        message(11, &[text_field(1, "b"), message(2, &message(1, &[number(1, 9), message(2, &[])].concat()))].concat());
    let graph = [message(1, &inner.concat()), condition, info(11, "x", &[2]), info(12, "y", &[2])];
    let imported = imported(&model(&graph, 17)).expect("a program");
    assert_eq!(constants(&imported), [("y/then_branch/c", None), ("y/else_branch/c", None)]);
    let values: Vec<_> = imported.weights.iter().flatten().map(|w| w.to_f64_vec()).collect();
    assert_eq!(values, [[1., 2.], [3., 4.]]);
}

/// A model that calls a function twice, which adds a constant of its own and one that each call gives.
pub(crate) fn calls() -> Vec<u8> {
    let of_call = message(5, &[text_field(1, "value"), text_field(21, "given"), number(20, 4)].concat());
    let node = |bytes: &[u8]| message(7, &bytes[2..]);
    let body = [
        node(&constant("own", &value(&[2], &[1., 2.]))),
        node(&constant("theirs", &of_call)),
        node(&crate::node("Add", &["a", "own"], "s", &[])),
        node(&crate::node("Add", &["s", "theirs"], "t", &[])),
    ];
    let names = [text_field(1, "F"), text_field(4, "a"), text_field(5, "t"), text_field(10, "d")];
    let function = message(25, &[names.concat(), body.concat()].concat());
    let call = |input: &str, output: &str, given: &[f32]| {
        let tensor = floats("", &[2], given);
        let given = attribute("given", 4, &message(5, &tensor[2..]));
        let names = [text_field(1, input), text_field(2, output), text_field(4, "F"), text_field(7, "d")];
        message(1, &[names.concat(), given].concat())
    };
    let graph = [call("x", "h", &[5., 6.]), call("h", "y", &[7., 8.]), info(11, "x", &[2]), info(12, "y", &[2])];
    [model(&graph, 17), function].concat()
}

#[test]
fn a_function_has_its_tensors_once_and_calls_have_their_own() {
    let imported = imported(&calls()).expect("a program");
    let names: Vec<&str> = constants(&imported).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["own", "h/given", "y/given"]);
}

#[test]
fn what_no_engine_holds_is_refused() {
    let of = |attribute: &[u8]| {
        let graph =
            [constant("c", attribute), node("Add", &["x", "c"], "y", &[]), info(11, "x", &[2]), info(12, "y", &[2])];
        imported(&model(&graph, 17)).expect_err("refused")
    };
    let sparse = of(&attribute("sparse_value", 11, &message(22, &[])));
    assert!(sparse.contains("a sparse constant, which is not read"), "{sparse}");
    let text = message(5, &[number(2, 8), message(6, b"word")].concat());
    let text = of(&attribute("value", 4, &text));
    assert!(text.contains("a tensor of string is not supported"), "{text}");
    // One of two tensors of one name would be taken for the other.
    let twice = [constant("c", &value(&[2], &[1., 2.])), constant("c", &value(&[2], &[3., 4.]))].concat();
    let graph = [twice, node("Add", &["x", "c"], "y", &[]), info(11, "x", &[2]), info(12, "y", &[2])];
    let error = imported(&model(&graph, 17)).expect_err("refused");
    assert!(error.contains("a second tensor is called `c`"), "{error}");
}

#[test]
fn tensors_of_branches_that_are_not_taken_have_names_too() {
    let mut inner = vec![text_field(1, "always"), text_field(2, "y"), text_field(4, "If")];
    inner.extend([branch("then_branch", &[1., 2.]), branch("else_branch", &[3., 4.])]);
    let always = attribute("value", 4, &message(5, &[number(2, 9), message(9, &[1])].concat()));
    let graph = [constant("always", &always), message(1, &inner.concat()), info(11, "x", &[2]), info(12, "y", &[2])];
    let imported = imported(&model(&graph, 17)).expect("a program");
    let expected = [("always", Some("1")), ("y/then_branch/c", None), ("y/else_branch/c", None)];
    assert_eq!(constants(&imported), expected);
}
