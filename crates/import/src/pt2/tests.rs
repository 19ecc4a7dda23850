//! Archives made by hand: good ones, and every way of being wrong that is known.

use std::io::{Cursor, Write as _};

use proptest::prelude::*;
use regraft_tensor::{Buffer, Symbol};
use serde_json::{Value, json};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;
use crate::pt2::{
    schema::{ConstantValue, OutputSpec},
    weights::Origin,
};

/// The entries of an archive, to be changed before it is written.
struct Files {
    entries: Vec<(String, Vec<u8>)>,
    method: CompressionMethod,
}

fn size(v: i64) -> Value {
    json!({ "as_int": v })
}

fn sym(name: &str, hint: i64) -> Value {
    let expr = format!("Symbol('{name}', positive=True, integer=True)");
    json!({ "as_expr": { "expr_str": expr, "hint": { "as_int": hint } } })
}

fn meta(dtype: i64, sizes: &[Value], strides: &[i64], offset: i64) -> Value {
    let strides: Vec<Value> = strides.iter().map(|s| size(*s)).collect();
    json!({
        "dtype": dtype, "sizes": sizes, "strides": strides, "storage_offset": size(offset), "layout": 7,
        "requires_grad": false, "device": { "type": "cpu", "index": null },
    })
}

fn fixed(dtype: i64, sizes: &[i64], strides: &[i64], offset: i64) -> Value {
    meta(dtype, &sizes.iter().map(|s| size(*s)).collect::<Vec<_>>(), strides, offset)
}

fn payload(path: &str, is_param: bool, tensor: Value) -> Value {
    json!({ "path_name": path, "is_param": is_param, "use_pickle": false, "tensor_meta": tensor })
}

fn tensor(name: &str) -> Value {
    json!({ "as_tensor": { "name": name } })
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn program() -> Value {
    let leaf = json!({ "type": null, "context": null, "children_spec": [] });
    let tuple =
        |children: Vec<Value>| json!({ "type": "builtins.tuple", "context": "null", "children_spec": children });
    let kwargs = json!({ "type": "builtins.dict", "context": "[\"flag\"]", "children_spec": [leaf] });
    let in_spec = json!([1, tuple(vec![tuple(vec![leaf.clone()]), kwargs])]).to_string();
    let out_spec = json!([1, leaf]).to_string();
    let parameter = |arg: &str, name: &str| json!({ "parameter": { "arg": { "name": arg }, "parameter_name": name } });
    json!({
        "graph_module": {
            "graph": {
                "inputs": [tensor("p_a"), tensor("p_t"), tensor("p_tied"), tensor("b_mask"), tensor("b_np"),
                    tensor("x"), { "as_bool": true }],
                "outputs": [tensor("linear")],
                "nodes": [{
                    "target": "torch.ops.aten.linear.default",
                    "inputs": [{ "name": "input", "arg": tensor("x"), "kind": 1 },
                        { "name": "weight", "arg": tensor("p_a"), "kind": 1 }],
                    "outputs": [tensor("linear")],
                    "metadata": { "nn_module_stack": "r,,a.Net;l,layers.0.fc,torch.nn.Linear" },
                    "name": "linear",
                }],
                "tensor_values": {
                    "p_a": fixed(7, &[2, 3], &[3, 1], 0),
                    "p_t": fixed(7, &[3, 2], &[1, 3], 0),
                    "p_tied": fixed(7, &[2, 3], &[3, 1], 0),
                    "b_mask": fixed(12, &[2], &[1], 1),
                    "b_np": fixed(5, &[], &[], 0),
                    "x": meta(7, &[sym("s77", 4), size(3)], &[3, 1], 0),
                    "linear": meta(7, &[sym("s77", 4), size(2)], &[2, 1], 0),
                },
                "sym_int_values": {}, "sym_bool_values": {}, "is_single_tensor_return": false,
            },
            "signature": {
                "input_specs": [parameter("p_a", "a"), parameter("p_t", "t"), parameter("p_tied", "tied"),
                    { "buffer": { "arg": { "name": "b_mask" }, "buffer_name": "mask", "persistent": true } },
                    { "buffer": { "arg": { "name": "b_np" }, "buffer_name": "np", "persistent": false } },
                    { "user_input": { "arg": tensor("x") } },
                    { "constant_input": { "name": "flag", "value": { "as_bool": true } } }],
                "output_specs": [{ "user_output": { "arg": tensor("linear") } }],
            },
            "module_call_graph": [{ "fqn": "", "signature": { "inputs": [], "outputs": [], "in_spec": in_spec,
                "out_spec": out_spec, "forward_arg_names": ["x", "flag"] } }],
        },
        "opset_version": { "aten": 10 },
        "range_constraints": { "s77": { "min_val": 2, "max_val": null } },
        "schema_version": { "major": 8, "minor": 20 },
        "torch_version": "2.15.0",
        "a field of tomorrow": [1, 2, 3],
    })
}

impl Files {
    fn good() -> Files {
        let weights = json!({ "config": {
            "a": payload("weight_0", true, fixed(7, &[2, 3], &[3, 1], 0)),
            "t": payload("weight_0", true, fixed(7, &[3, 2], &[1, 3], 0)),
            "tied": payload("weight_0", true, fixed(7, &[2, 3], &[3, 1], 0)),
            "mask": payload("weight_1", false, fixed(12, &[2], &[1], 1)),
        } });
        let constants = json!({ "config": { "np": payload("tensor_0", false, fixed(5, &[], &[], 0)) } });
        let entries = [
            ("net/data/weights/weight_0", f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
            ("net/data/weights/weight_1", vec![0, 1, 0]),
            ("net/data/weights/model_weights_config.json", weights.to_string().into_bytes()),
            ("net/data/constants/tensor_0", 42i64.to_le_bytes().to_vec()),
            ("net/data/constants/model_constants_config.json", constants.to_string().into_bytes()),
            ("net/models/model.json", program().to_string().into_bytes()),
            ("net/data/sample_inputs/model.pt", b"a pickle".to_vec()),
            ("net/archive_format", b"pt2".to_vec()),
            ("net/archive_version", b"0".to_vec()),
            ("net/byteorder", b"little".to_vec()),
        ];
        let entries = entries.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        Files { entries, method: CompressionMethod::Stored }
    }

    /// With the entry `name` replaced or added.
    fn with(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Files {
        self.entries.retain(|(n, _)| n != name);
        self.entries.push((name.to_owned(), bytes.into()));
        self
    }

    fn without(mut self, part: &str) -> Files {
        self.entries.retain(|(n, _)| !n.contains(part));
        self
    }

    /// With a JSON entry changed by `f`.
    fn edit(self, name: &str, f: impl FnOnce(&mut Value)) -> Files {
        let (_, bytes) = self.entries.iter().find(|(n, _)| n == name).expect("an entry of this name");
        let mut value = serde_json::from_slice(bytes).expect("JSON");
        f(&mut value);
        self.with(name, value.to_string())
    }

    fn edit_weight(self, name: &str, f: impl FnOnce(&mut Value)) -> Files {
        self.edit("net/data/weights/model_weights_config.json", |v| f(&mut v["config"][name]))
    }

    fn edit_program(self, f: impl FnOnce(&mut Value)) -> Files {
        self.edit("net/models/model.json", f)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in &self.entries {
            // As PyTorch places its entries.
            let options = SimpleFileOptions::default().compression_method(self.method).with_alignment(64);
            zip.start_file(name.as_str(), options).expect("a new entry");
            zip.write_all(bytes).expect("a write to memory");
        }
        zip.finish().expect("a directory").into_inner()
    }

    fn open(&self) -> Result<Pt2Archive, String> {
        open(&self.bytes())
    }

    fn refused(&self, expected: &str) {
        let error = self.open().expect_err(expected);
        assert!(error.contains(expected), "expected `{expected}` in: {error}");
        assert!(error.contains("help: "), "{error}");
    }
}

fn open(bytes: &[u8]) -> Result<Pt2Archive, String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("a write");
    Pt2Archive::open(file.path()).map_err(|e| {
        let text = e.to_string();
        assert!(text.starts_with(&*file.path().to_string_lossy()), "{text}");
        text
    })
}

fn same(a: &Pt2Archive, b: &Pt2Archive) -> bool {
    let weights = a.weights.iter().zip(b.weights.iter()).all(|(a, b)| {
        let values = match (&a.tensor, &b.tensor) {
            (Some(a), Some(b)) => a.bit_equal(b),
            (None, None) => true,
            _ => false,
        };
        values && (&a.name, a.origin, a.is_param, &a.alias_of) == (&b.name, b.origin, b.is_param, &b.alias_of)
    });
    weights
        && a.weights.len() == b.weights.len()
        && (&a.program, &a.symbols, &a.call) == (&b.program, &b.symbols, &b.call)
}

#[test]
fn a_good_archive_opens() {
    let archive = Files::good().open().expect("a good archive");
    assert_eq!((archive.model.as_str(), archive.program.torch_version.as_str()), ("model", "2.15.0"));
    let linear = &archive.graph().nodes[0];
    assert_eq!((linear.label(), linear.module_path()), ("linear", "layers.0.fc".to_owned()));
    assert_eq!(linear.input("weight").and_then(|w| w.first_name()), Some("p_a"));

    let x = archive.tensor_type(archive.graph(), "x").expect("a type");
    assert_eq!(x, TensorType { dtype: DType::F32, shape: vec![Dim::sym(Symbol(0)), Dim::new(3)] });
    let s77 = &archive.symbols.iter().as_slice()[0];
    assert_eq!((s77.name.as_str(), s77.opt, s77.range.min, s77.range.max), ("s77", Some(4), 2, symbols::UNBOUNDED));
    assert!(archive.tensor_type(archive.graph(), "nothing").is_err());

    let inputs: Vec<_> = archive.user_inputs().map(|(name, _)| name).collect();
    assert_eq!(inputs, ["x", "flag"]);
    assert!(
        matches!(archive.user_inputs().nth(1), Some((_, InputSpec::ConstantInput(c))) if c.value == ConstantValue::Bool(true))
    );
    assert_eq!(archive.call.output_names, ["output"]);
    assert!(matches!(archive.program.graph_module.signature.output_specs[0], OutputSpec::UserOutput(_)));
}

#[test]
fn weights_are_mapped_gathered_and_tied() {
    let archive = Files::good().open().expect("a good archive");
    let tensor = |name: &str| archive.weights.get(name).and_then(|w| w.tensor.clone()).expect("a value");
    assert!(matches!(tensor("a").buffer(), Buffer::Mapped(..)));
    assert_eq!(tensor("a").to_f64_vec(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(tensor("t").to_f64_vec(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert!(matches!(tensor("mask").buffer(), Buffer::Mapped(..)));
    assert_eq!((tensor("mask").dtype(), tensor("mask").to_i64_vec()), (DType::Bool, vec![1, 0]));
    assert_eq!(tensor("np").to_i64_vec(), [42]);
    assert_eq!(archive.weights.get("np").map(|w| (w.origin, w.is_param)), Some((Origin::Constant, false)));
    assert!(tensor("a").buffer().same_memory(tensor("tied").buffer()));
    assert_eq!(archive.weights.aliases().collect::<Vec<_>>(), [("tied", "a")]);
    assert!(!archive.weights.is_stripped());
}

#[test]
fn the_state_dict_is_read_alone() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let read = |files: Files| {
        std::fs::write(file.path(), files.bytes()).expect("a write");
        read_pt2_weights(file.path()).map_err(|e| e.to_string())
    };
    // Symbols and calls are those of the program, and do not matter.
    let files = Files::good()
        .edit_program(|p| p["range_constraints"]["s77"] = json!({ "min_val": 5, "max_val": 4 }))
        .edit_program(|p| p["graph_module"]["graph"]["nodes"][0]["target"] = json!("my.own.op"));
    let dict = read(files).expect("a state dict");
    assert_eq!(dict.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "mask", "t", "tied"]);
    let tensor = |name: &str| dict.get(name).expect("a tensor");
    assert_eq!(tensor("t").to_f64_vec(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert!(tensor("a").buffer().same_memory(tensor("tied").buffer()));

    let error = read(Files::good().without("weight_")).expect_err("no weights");
    assert!(error.contains("4 weights cannot be used") && error.contains("saved without its value"), "{error}");
    let error = read(Files::good().with("net/data/weights/weight_1", [0, 2, 0])).expect_err("a damaged weight");
    assert!(error.contains("mask  a bool is 0 or 1"), "{error}");
}

#[test]
fn compressed_archives_are_read_into_memory() {
    let deflated = Files { method: CompressionMethod::Deflated, ..Files::good() };
    let archive = deflated.open().expect("a compressed archive");
    assert!(same(&archive, &Files::good().open().expect("a good archive")));
    assert!(archive.weights.iter().all(|w| matches!(w.tensor.as_ref().map(|t| t.buffer()), Some(Buffer::Owned(_)))));
}

#[test]
fn programs_without_weights_keep_their_types() {
    for files in [
        Files::good().without("weight_").without("tensor_0"),
        Files::good().without("data/"),
        Files::good().with("net/data/weights/weight_0", "").with("net/data/weights/weight_1", "").without("tensor_0"),
    ] {
        let archive = files.open().expect("a program without weights");
        assert!(archive.weights.is_stripped());
        let types: Vec<_> = archive.weights.iter().map(|w| (w.name.as_str(), w.dtype, w.shape.as_slice())).collect();
        assert!(
            types.contains(&("a", DType::F32, &[2, 3])) && types.contains(&("mask", DType::Bool, &[2])),
            "{types:?}"
        );
        assert_eq!(types.len(), 5);
        assert!(archive.weights.iter().all(|w| w.tensor.is_none()));
    }
    // The constants may stay when the weights go.
    let archive = Files::good().without("weight_").open().expect("a program without weights");
    assert!(archive.weights.get("np").is_some_and(|w| w.tensor.is_some()));
}

#[test]
fn empty_tensors_need_no_bytes() {
    let files = Files::good()
        .edit_weight("mask", |w| *w = payload("weight_1", false, fixed(12, &[0, 1 << 40, 1 << 40], &[1, 1, 1], 0)))
        .edit_program(|p| {
            p["graph_module"]["graph"]["tensor_values"]["b_mask"] = fixed(12, &[0, 1 << 40, 1 << 40], &[1, 1, 1], 0);
        })
        .without("weight_1");
    let archive = files.open().expect("an empty tensor");
    assert_eq!(archive.weights.get("mask").and_then(|w| w.tensor.as_ref()).map(|t| t.numel()), Some(0));
}

#[test]
fn wrong_weights_are_refused_by_name() {
    let config = |w: &str| -> Box<dyn FnOnce(Value) -> Files> {
        let w = w.to_owned();
        Box::new(move |meta| Files::good().edit_weight(&w, |v| v["tensor_meta"] = meta))
    };
    Files::good().without("weight_1").refused("mask  net/data/weights/weight_1 is missing");
    config("a")(fixed(7, &[3, 3], &[3, 1], 0))
        .refused("a  the graph has f32[2, 3], the configuration of the weights f32[3, 3]");
    config("a")(fixed(7, &[2, 3], &[3, 1], 1)).refused("a  f32[2, 3] at element 1 needs 24 bytes");
    config("a")(fixed(7, &[2, 3], &[3, 1], i64::MAX)).refused("a  f32[2, 3] at element");
    config("a")(fixed(7, &[2, 3], &[1 << 62, 1 << 62], 0)).refused("a  a view of shape [2, 3]");
    config("a")(fixed(7, &[2, 3], &[4, 1], 0)).refused("leaves its storage of 6 elements");
    config("a")(fixed(7, &[2, 3], &[3, -1], 0)).refused("stride Int(-1) is not a natural number");
    config("a")(fixed(7, &[2, -3], &[3, 1], 0)).refused("a negative size");
    config("a")(fixed(7, &[2, 3], &[3], 0)).refused("expected 2 strides, found 1");
    config("a")(fixed(7, &[1 << 40, 1 << 40], &[0, 0], 0)).refused("too large for memory");
    config("a")(fixed(29, &[2, 3], &[3, 1], 0)).refused("its dtype is Float8E4M3Fn");
    config("a")(meta(7, &[sym("s77", 4), size(3)], &[3, 1], 0)).refused("its shape is symbolic");
    Files::good().edit_weight("a", |w| w["tensor_meta"]["layout"] = json!(1)).refused("its layout is SparseCoo");
    Files::good().edit_weight("a", |w| w["use_pickle"] = json!(true)).refused("a tensor subclass in a pickle");
    Files::good().edit_weight("a", |w| w["path_name"] = json!("../x")).refused("expected the name of an entry");
    Files::good().with("net/data/weights/weight_1", [0, 2, 0]).refused("mask  a bool is 0 or 1, found the byte 2");
    Files::good()
        .edit("net/data/weights/model_weights_config.json", |c| {
            c["config"].as_object_mut().map(|c| c.remove("tied"));
        })
        .refused("tied  the program uses it");
    Files::good()
        .edit("net/data/constants/model_constants_config.json", |c| {
            c["config"]["extra"] = c["config"]["np"].clone();
        })
        .edit_weight("extra", |w| *w = payload("weight_1", false, fixed(12, &[2], &[1], 1)))
        .refused("among the weights and among the constants");
}

#[test]
fn weights_cannot_ask_for_more_memory_than_the_file_justifies() {
    let huge = || fixed(7, &[1 << 20, 1 << 20], &[0, 0], 0);
    Files::good()
        .edit_weight("a", |w| w["tensor_meta"] = huge())
        .edit_program(|p| p["graph_module"]["graph"]["tensor_values"]["p_a"] = huge())
        .refused("unfold to 4398046511");
    let bomb = Files { method: CompressionMethod::Deflated, ..Files::good() };
    bomb.with("net/models/model.json", vec![b' '; 8 << 20]).refused("net/models/model.json: ");
}

#[test]
fn what_is_no_supported_archive_is_refused_with_advice() {
    Files::good().with("net/archive_version", "1").refused("found version `1`, supported is 0");
    Files::good().with("net/archive_version", vec![b'0'; 100]).refused("expected a short mark");
    Files::good().with("net/archive_format", "pt3").refused("expected `pt2`, found `pt3`");
    Files::good().without("archive_format").refused("net/archive_format: it is missing");
    Files::good().with("net/byteorder", "big").refused("little-endian machine");
    Files::good().without("models/").refused("expected an exported program, found none");
    Files::good().without("models/").with("net/data/aotinductor/model/a.so", "").refused("AOTInductor");
    Files::good().with("other/models/model.json", "{}").refused("found `net` and `other`");
    Files::good().with("net/data/weights/model.pt", "pickle").refused("weights in a pickle");
    Files::good().with("net/models/second.json", "{}").open().expect("`model` is chosen");
    Files::good()
        .without("models/")
        .with("net/models/a.json", "{}")
        .with("net/models/b.json", "{}")
        .refused("found `a`, `b`");
    let files = |entries: &[&str]| Files {
        entries: entries.iter().map(|n| ((*n).to_owned(), vec![])).collect(),
        method: CompressionMethod::Stored,
    };
    files(&["serialized_exported_program.json", "version"]).refused("the layout of torch 2.7");
    files(&["archive/data.pkl", "archive/version"]).refused("torch.save or torch.jit.save");
    files(&[]).refused("found nothing");
    assert!(open(b"").is_err());
    assert!(open(b"not a zip file").expect_err("no zip").contains("it is not a zip file"));
    assert!(Pt2Archive::open("/nowhere/x.pt2").expect_err("no file").to_string().starts_with("/nowhere/x.pt2: "));
}

#[test]
fn wrong_programs_are_refused_with_their_place() {
    Files::good()
        .edit_program(|p| p["schema_version"]["major"] = json!(9))
        .refused("found version 9.20, supported is 8");
    // The version explains why the rest cannot be read.
    Files::good()
        .edit_program(|p| *p = json!({ "schema_version": { "major": 9, "minor": 0 } }))
        .refused("found version 9.0, supported is 8");
    Files::good()
        .edit_program(|p| p["graph_module"]["graph"]["nodes"][0]["inputs"][1]["arg"] = json!({ "as_int": "x" }))
        .refused("net/models/model.json: graph_module.graph.nodes[0].inputs[1].arg.as_int: ");
    Files::good()
        .edit_program(|p| p["graph_module"]["signature"]["output_specs"] = json!([]))
        .refused("graph_module.signature.output_specs: expected 1");
    Files::good()
        .edit_program(|p| p["graph_module"]["graph"]["inputs"][0] = tensor("p_b"))
        .refused("graph_module.signature.input_specs[0]: expected `p_b`");
    Files::good()
        .edit_program(|p| p["range_constraints"]["s77"] = json!({ "min_val": 5, "max_val": 4 }))
        .refused("range_constraints: `s77` has no value: its range is 5 to 4");
    Files::good()
        .edit_program(|p| {
            let size = json!({ "as_expr": { "expr_str": "Symbol('s1'" } });
            p["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = size;
        })
        .refused("x: `Symbol('s1'` cannot be read");
    let graph = r#"{"nodes": [{"target": "cond", "inputs": [{"arg": {"as_graph": {"name": "g", "graph": "#;
    let deep = format!(r#"{{"graph_module": {{"graph": {}"#, graph.repeat(1000));
    Files::good().with("net/models/model.json", deep).refused("recursion limit");
}

#[test]
fn entries_that_share_bytes_or_names_are_refused() {
    let good = Files::good().bytes();
    // The directory's second record is pointed at the first one's local header.
    let records: Vec<usize> =
        good.windows(4).enumerate().filter(|(_, w)| *w == b"PK\x01\x02").map(|(i, _)| i).collect();
    let mut shared = good.clone();
    shared.copy_within(records[0] + 42..records[0] + 46, records[1] + 42);
    assert!(open(&shared).expect_err("shared bytes").contains("is not sound"));
    // The second record takes the name of the first.
    let mut twice = good;
    let name = records[1] + 46 + "net/data/weights/weight_".len();
    twice[name] = b'0';
    assert!(open(&twice).expect_err("two entries of one name").contains("is not sound"));
}

#[test]
fn every_truncation_is_refused() {
    let good = Files::good().bytes();
    for len in (0..good.len()).step_by(13).chain(good.len() - 70..good.len()) {
        assert!(open(&good[..len]).is_err(), "{len} of {} bytes", good.len());
    }
}

/// Opens the archive with one bit changed; it must be refused or mean the same.
fn flip(good: &[u8], original: &Pt2Archive, bit: usize) {
    let mut bytes = good.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    if let Ok(archive) = open(&bytes) {
        assert!(same(&archive, original), "bit {bit} of byte {} changes the program unnoticed", bit / 8);
    }
}

#[test]
fn a_flipped_bit_in_the_directory_changes_nothing_unnoticed() {
    for files in [Files::good(), Files { method: CompressionMethod::Deflated, ..Files::good() }] {
        let (good, original) = (files.bytes(), files.open().expect("a good archive"));
        let directory = good.windows(4).position(|w| w == b"PK\x01\x02").expect("a directory");
        for byte in directory..good.len() {
            flip(&good, &original, byte * 8 + byte % 8);
        }
        for header in good.windows(4).enumerate().filter(|(_, w)| *w == b"PK\x03\x04").map(|(at, _)| at) {
            for byte in header..header + 30 {
                flip(&good, &original, byte * 8 + byte % 8);
            }
        }
    }
}

proptest! {
    #[test]
    fn flipped_bits_change_nothing_unnoticed(at in 0.0..1.0f64) {
        let good = Files::good().bytes();
        let original = open(&good).expect("a good archive");
        flip(&good, &original, (at * (good.len() * 8) as f64) as usize);
    }

    #[test]
    fn damaged_archives_never_panic(cut in 0.0..1.0f64, noise in proptest::collection::vec((0.0..1.0f64, any::<u8>()), 0..8)) {
        let mut bytes = Files::good().bytes();
        let at = |f: f64, len: usize| (f * len as f64) as usize;
        for (place, byte) in noise {
            let place = at(place, bytes.len());
            bytes[place] = byte;
        }
        let _ = open(&bytes);
        bytes.truncate(at(cut, bytes.len()));
        prop_assert!(open(&bytes).is_err());
    }

    #[test]
    fn hostile_programs_never_panic(place in 0.0..1.0f64, byte in any::<u8>()) {
        let mut text = program().to_string().into_bytes();
        let at = (place * text.len() as f64) as usize;
        text[at] = byte;
        if let Ok(archive) = Files::good().with("net/models/model.json", text).open() {
            for name in archive.graph().tensor_values.keys() {
                let _ = archive.tensor_type(archive.graph(), name);
            }
        }
    }
}
