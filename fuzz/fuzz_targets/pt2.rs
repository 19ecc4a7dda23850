//! Edits to the JSON of sound `.pt2` files, by value and by byte; then the files are imported.

#![no_main]

use std::{
    collections::BTreeMap,
    io::{Cursor, Read as _},
    sync::LazyLock,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use regraft_fuzz::json::{nodes, nth};
use regraft_import::{import_pt2, read_pt2_weights};
use serde_json::{Value, json};

/// The files that are edited.
macro_rules! fixtures {
    ($($name:literal),*) => {
        [$(&include_bytes!(concat!("../../crates/conformance/fixtures/", $name, ".pt2"))[..]),*]
    };
}

static FILES: LazyLock<Vec<BTreeMap<String, Vec<u8>>>> = LazyLock::new(|| {
    let files = fixtures![
        "linear",
        "embedding",
        "slices",
        "dtypes",
        "tied",
        "lstm",
        "pooling",
        "conv1d",
        "constants",
        "nested_inputs",
        "mutated_buffer",
        "elementwise",
        "attention_block"
    ];
    files.into_iter().map(entries).collect()
});

fn entries(file: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut zip = zip::ZipArchive::new(Cursor::new(file)).expect("a zip file");
    let entry = |index| {
        let mut entry = zip.by_index(index).expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its bytes");
        (entry.name().expect("a name").into_owned(), bytes)
    };
    (0..file_count(file)).map(entry).collect()
}

fn file_count(file: &[u8]) -> usize {
    zip::ZipArchive::new(Cursor::new(file)).expect("a zip file").len()
}

#[derive(Arbitrary, Debug)]
struct Input {
    file: u8,
    program: Vec<Edit>,
    program_bytes: Vec<(u16, u8)>,
    weights: Vec<Edit>,
    weights_bytes: Vec<(u16, u8)>,
    /// The tail of an entry is cut off.
    cut: Option<(u8, u16)>,
}

/// A change of one value of a JSON text; values are counted in the order that they stand in.
#[derive(Arbitrary, Debug)]
struct Edit {
    at: u16,
    change: Change,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Number(i64),
    Interesting(u8),
    Text(String),
    Remove,
    Twice,
    /// As another value of the text.
    Copy(u16),
    /// An object's or a list's part is put in another one's place.
    Wrap,
    Rename(String),
    Add(i8),
}

fn interesting(index: u8) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!([]),
        json!({}),
        json!(""),
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e308),
        json!(0.5),
        json!("s0"),
        json!("s0*s1 + 2"),
        json!("Max(1, s0)//2"),
        json!("NaN"),
        json!("inf"),
        json!({"as_int": 1u64 << 40}),
        json!({"as_ints": [0, -1, 1u64 << 33]}),
        json!({"as_none": []}),
        json!({"as_float": "NaN"}),
        json!({"as_expr": {"expr_str": "s0", "hint": null}}),
    ];
    values[usize::from(index) % values.len()].clone()
}

fn edit(text: &mut Value, edit: &Edit) {
    let len = nodes(text);
    let copied = match edit.change {
        Change::Copy(from) => nth(text, &mut (usize::from(from) % len)).cloned(),
        _ => None,
    };
    let Some(value) = nth(text, &mut (usize::from(edit.at) % len)) else { return };
    match &edit.change {
        Change::Number(number) => *value = json!(number),
        Change::Interesting(index) => *value = interesting(*index),
        Change::Text(text) => *value = json!(text),
        Change::Copy(_) => *value = copied.unwrap_or_default(),
        Change::Wrap => *value = json!([value.take()]),
        Change::Add(by) => {
            if let Some(number) = value.as_i64() {
                *value = json!(number.wrapping_add(i64::from(*by)));
            }
        }
        Change::Remove => match value {
            Value::Array(items) => drop(items.pop()),
            Value::Object(fields) => {
                let last = fields.keys().next_back().cloned();
                last.and_then(|key| fields.remove(&key));
            }
            other => *other = Value::Null,
        },
        Change::Twice => match value {
            Value::Array(items) => items.extend(items.last().cloned()),
            Value::String(text) => *text = text.repeat(2),
            _ => {}
        },
        Change::Rename(name) => {
            if let Value::Object(fields) = value
                && let Some(key) = fields.keys().next_back().cloned()
                && let Some(inner) = fields.remove(&key)
            {
                fields.insert(name.clone(), inner);
            }
        }
    }
}

fn edited(text: &[u8], edits: &[Edit], bytes: &[(u16, u8)]) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(text).expect("the fixture is JSON");
    edits.iter().take(16).for_each(|e| edit(&mut value, e));
    // Copies may double a text each time.
    let mut text = value.to_string().into_bytes();
    text.truncate(1 << 20);
    for (at, byte) in bytes.iter().take(16) {
        let at = usize::from(*at) % text.len();
        text[at] = *byte;
    }
    text
}

fuzz_target!(|input: Input| {
    let mut entries = FILES[usize::from(input.file) % FILES.len()].clone();
    let last = entries.len() - 1;
    for (index, (name, bytes)) in entries.iter_mut().enumerate() {
        if name.ends_with("/models/model.json") {
            *bytes = edited(bytes, &input.program, &input.program_bytes);
        }
        if name.ends_with("/model_weights_config.json") {
            *bytes = edited(bytes, &input.weights, &input.weights_bytes);
        }
        if let Some((which, by)) = input.cut
            && usize::from(which).min(last) == index
        {
            bytes.truncate(bytes.len().saturating_sub(usize::from(by)));
        }
    }
    let file = regraft_fuzz::zipped(entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    let path = regraft_fuzz::file("model.pt2", &file);
    match import_pt2(&path) {
        Ok(imported) => drop(std::hint::black_box(imported)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match read_pt2_weights(&path) {
        Ok(dict) => regraft_fuzz::read_all(&dict),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
