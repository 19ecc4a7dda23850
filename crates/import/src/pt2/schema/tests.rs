use serde::de::DeserializeOwned;

use super::*;

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    from_json(text.as_bytes()).map_err(|p| format!("{}: {}", p.at, p.problem))
}

#[test]
fn unions_read_known_and_unknown_tags() {
    assert_eq!(read(r#"{"as_int": 3}"#), Ok(Argument::Int(3)));
    assert_eq!(read(r#"{"as_none": true}"#), Ok(Argument::None));
    assert_eq!(read(r#"{"as_float": "-Infinity"}"#), Ok(Argument::Float(f64::NEG_INFINITY)));
    assert_eq!(read(r#"{"as_floats": [1, 2.5]}"#), Ok(Argument::Floats(vec![1.0, 2.5])));
    assert_eq!(read(r#"{"as_new": {"x": [1]}}"#), Ok(Argument::Unknown("as_new".to_owned())));
    assert!(read::<Argument>(r#"{}"#).expect_err("empty").contains("one tag"));
    assert!(read::<Argument>(r#"{"as_int": 1, "as_bool": true}"#).expect_err("two").contains("`as_bool`"));
    assert!(read::<Argument>(r#"{"as_float": "x"}"#).is_err());
}

#[test]
fn errors_say_where() {
    let error = read::<Node>(
        r#"{"target": "t", "outputs": [], "inputs": [{"name": "a", "arg": {"as_int": 1}}, {"name": "b", "arg": {"as_int": "1"}}]}"#,
    );
    let error = error.expect_err("a text is not an integer");
    assert!(error.starts_with("inputs[1].arg.as_int: "), "{error}");
}

#[test]
fn bounds_saturate_and_open() {
    let read = |text: &str| read::<RangeConstraint>(text).map(|r| (r.min_val, r.max_val));
    assert_eq!(read(r#"{"min_val": 2, "max_val": null}"#), Ok((Some(2), None)));
    assert_eq!(read(r#"{"min_val": -1, "max_val": 99999999999999999999999}"#), Ok((Some(-1), Some(i64::MAX))));
    assert_eq!(read(r#"{"max_val": "Infinity"}"#), Ok((None, None)));
}

#[test]
fn module_paths() {
    let path = |stack: &str| Metadata { nn_module_stack: stack.to_owned(), ..Metadata::default() }.module_path();
    assert_eq!(path(""), "");
    assert_eq!(path("L__self__,,a.B"), "");
    assert_eq!(path("L__self__,,a.B;L__self___layers,layers.0,torch.nn.Linear"), "layers.0");
    assert_eq!(path("a,,B;c,layers.slice(None, 2, None).1,D"), "layers.slice(None, 2, None).1");
    assert_eq!(path("a,L['self'],B;c,L['self'].layers['0'].fc,D"), "layers.0.fc");
    let none = "_empty_nn_module_stack_from_metadata_hook";
    assert_eq!(path(&format!("{none},{none},{none}")), "");
}

#[test]
fn nesting_is_limited() {
    assert!(read::<Argument>(&r#"{"as_new": ["#.repeat(100_000)).is_err());
}
