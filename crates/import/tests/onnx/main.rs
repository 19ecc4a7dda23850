//! ONNX models made by hand: what is imported, what is refused, and damaged ones, which are never more than refused.

mod constants;
#[path = "../../../checkpoint/tests/files/wire.rs"]
mod wire;

use std::path::PathBuf;

use regraft_import::{Imported, import, import_bare};
use regraft_ir::{Role, SourceKind, text};

use crate::wire::{message, number};

fn text_field(field: u64, text: &str) -> Vec<u8> {
    message(field, text.as_bytes())
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|d| number(1, *d)).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    message(5, &[dims, number(2, 1), text_field(8, name), message(9, &bytes)].concat())
}

fn ints(name: &str, values: &[i64]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|v| number(7, *v)).collect();
    message(5, &[number(1, values.len() as i64), number(2, 7), text_field(8, name), data].concat())
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> Vec<u8> {
    let mut content: Vec<u8> = inputs.iter().flat_map(|i| text_field(1, i)).collect();
    content.extend([text_field(2, output), text_field(3, &format!("/block/{op}")), text_field(4, op)].concat());
    for (name, value) in attributes {
        content.extend(message(5, &[text_field(1, name), number(3, *value), number(20, 2)].concat()));
    }
    message(1, &content)
}

/// An input or output of f32 with sizes, negative ones by the name `n`.
fn info(field: u64, name: &str, sizes: &[i64]) -> Vec<u8> {
    let size = |s: &i64| message(1, &if *s < 0 { text_field(2, "n") } else { number(1, *s) });
    let shape: Vec<u8> = sizes.iter().flat_map(size).collect();
    let tensor = [number(1, 1), message(2, &shape)].concat();
    message(field, &[text_field(1, name), message(2, &message(1, &tensor))].concat())
}

fn model(graph: &[Vec<u8>], opset: i64) -> Vec<u8> {
    [number(1, 8), message(7, &graph.concat()), message(8, &number(2, opset))].concat()
}

/// `reshape(gemm(x, wᵀ, b)·m, [0, 2, 2])`.
fn block() -> Vec<Vec<u8>> {
    vec![
        node("Gemm", &["x", "fc.weight", "fc.bias"], "h", &[("transB", 1)]),
        node("MatMul", &["h", "onnx::MatMul_7"], "p", &[]),
        node("Reshape", &["p", "shape"], "y", &[]),
        floats("fc.weight", &[3, 2], &[1., 2., 3., 4., 5., 6.]),
        floats("fc.bias", &[3], &[0.5, 0., -0.5]),
        floats("onnx::MatMul_7", &[3, 4], &[1.; 12]),
        ints("shape", &[0, 2, 2]),
        info(11, "x", &[-1, 2]),
        info(12, "y", &[-1, 2, 2]),
    ]
}

fn written(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).expect("a file");
    path
}

fn imported(bytes: &[u8]) -> Result<Imported, String> {
    let folder = tempfile::tempdir().expect("a folder");
    import(written(&folder, bytes)).map_err(|e| e.to_string())
}

#[test]
fn a_model_has_its_initializers_as_sources() {
    let imported = imported(&model(&block(), 17)).expect("a program");
    let graph = &imported.graph;
    let sources: Vec<_> = graph.sources.iter().map(|s| (s.name.as_str(), s.kind, s.role)).collect();
    assert_eq!(
        sources,
        [
            ("fc.weight", SourceKind::Parameter, Role::Linear),
            ("fc.bias", SourceKind::Parameter, Role::Other),
            ("onnx::MatMul_7", SourceKind::Parameter, Role::LinearInOut),
            // What shapes say belongs to the program.
            ("shape", SourceKind::Constant, Role::Other),
        ]
    );
    assert_eq!(graph.ty(graph.outputs[0].value).to_string(), "f32[s0, 2, 2]");
    let text = text::print(graph);
    assert!(text.contains("// block"), "{text}");
    assert_eq!(imported.call.input_names, ["x"]);
}

#[test]
fn question_marks_are_sizes_of_their_own() {
    let unknown = message(1, &text_field(2, "?"));
    let shape = message(2, &[unknown.clone(), unknown].concat());
    let tensor = message(2, &message(1, &[number(1, 1), shape].concat()));
    let graph =
        [node("Relu", &["x"], "y", &[]), message(11, &[text_field(1, "x"), tensor].concat()), info(12, "y", &[-1, -1])];
    let imported = imported(&model(&graph, 17)).expect("a program");
    assert_eq!(imported.graph.ty(imported.graph.outputs[0].value).to_string(), "f32[s0, s1]");
}

#[test]
fn without_weights_the_program_keeps_what_is_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let imported = import_bare(written(&folder, &model(&block(), 17))).expect("a program");
    let there: Vec<bool> = imported.weights.iter().map(Option::is_some).collect();
    assert_eq!(there, [false, false, false, true]);
}

#[test]
fn what_is_not_translated_is_refused_by_name() {
    let with = |extra: Vec<u8>, opset: i64| {
        let mut graph = block();
        graph.insert(0, extra);
        imported(&model(&graph, opset)).expect_err("refused")
    };
    let unknown = with(node("Frobnicate", &["x"], "z", &[]), 17);
    assert!(unknown.contains("ai.onnx.Frobnicate") && unknown.contains("first in block"), "{unknown}");
    let opset = with(node("Relu", &["x"], "z", &[]), 99);
    assert!(opset.contains("opset 99"), "{opset}");
    let attribute = with(node("Relu", &["x"], "z", &[("slope", 3)]), 17);
    assert!(attribute.contains("the attribute `slope`") && attribute.contains("/block/Relu (Relu)"), "{attribute}");
    let input = with(node("Relu", &["x", "fc.bias"], "z", &[]), 17);
    assert!(input.contains("its input 1 (`fc.bias`)"), "{input}");
    let data = with(node("NonZero", &["x"], "z", &[]), 17);
    assert!(data.contains("depends on the values"), "{data}");
    // All at once; what reads a refused result is not told.
    let mut graph = block();
    graph.insert(0, node("NonZero", &["x"], "u", &[]));
    graph.insert(1, node("Relu", &["u"], "v", &[]));
    graph.insert(2, node("Unique", &["x"], "w", &[]));
    let both = imported(&model(&graph, 17)).expect_err("refused");
    assert!(both.contains("2 parts of the program") && !both.contains("(Relu)"), "{both}");
}

/// A node with several results and lists of numbers as attributes.
fn listed(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, &[i64])]) -> Vec<u8> {
    message(1, &content_of(op, inputs, outputs, attributes))
}

fn content_of(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, &[i64])]) -> Vec<u8> {
    let mut content: Vec<u8> = inputs.iter().flat_map(|i| text_field(1, i)).collect();
    content.extend(outputs.iter().flat_map(|o| text_field(2, o)));
    content.extend(text_field(4, op));
    for (name, values) in attributes {
        let values: Vec<u8> = values.iter().flat_map(|v| number(8, *v)).collect();
        content.extend(message(5, &[text_field(1, name), values, number(20, 7)].concat()));
    }
    content
}

/// Operators that compute with sizes and lists of the file: windows, sequences, spectra, boxes, n-grams.
fn parts() -> Vec<Vec<u8>> {
    let pool: &[(&str, &[i64])] = &[("kernel_shape", &[2, 2]), ("strides", &[2, 2]), ("pads", &[0, 1, 1, 0])];
    let grams: &[(&str, &[i64])] =
        &[("pool_int64s", &[2, 3, 5, 4, 5, 6]), ("ngram_counts", &[0, 2]), ("ngram_indexes", &[0, 1, 2, 3])];
    let counted = content_of("TfIdfVectorizer", &["shape"], &["grams"], grams);
    let more = [("min_gram_length", 1), ("max_gram_length", 2), ("max_skip_count", 1)];
    let more = more.map(|(name, v)| message(5, &[text_field(1, name), number(3, v), number(20, 2)].concat()));
    let mode = message(5, &[text_field(1, "mode"), text_field(4, "TF"), number(20, 3)].concat());
    let counted = message(1, &[counted, more.concat(), mode].concat());
    vec![
        listed("MaxPool", &["image"], &["small", "places"], pool),
        listed("MaxUnpool", &["small", "places"], &["large"], &pool[..2]),
        listed("SplitToSequence", &["image", "halves"], &["list"], &[]),
        node("ConcatFromSequence", &["list"], "again", &[("axis", 1)]),
        listed("Col2Im", &["columns", "size", "block"], &["put"], &[("strides", &[1, 1]), ("pads", &[0, 0, 1, 1])]),
        node("DFT", &["signal"], "spectrum", &[("axis", 1), ("onesided", 1)]),
        listed("STFT", &["signal", "step", "", "frame"], &["spectra"], &[]),
        node("RoiAlign", &["image", "boxes", "which"], "parts", &[("sampling_ratio", 2)]),
        counted,
        ints("halves", &[1, 1]),
        ints("shape", &[5, 4, 5]),
        ints("size", &[4, 4]),
        ints("block", &[2, 2]),
        ints("step", &[2]),
        ints("frame", &[4]),
        ints("which", &[0]),
        floats("boxes", &[1, 4], &[0., 0., 3., 3.]),
        info(11, "image", &[2, 2, 4, 4]),
        info(11, "columns", &[1, 4, 16]),
        info(11, "signal", &[1, 8, 1]),
        info(12, "again", &[2, 2, 4, 4]),
        info(12, "spectra", &[1, 3, 3, 2]),
        info(12, "grams", &[4]),
    ]
}

#[test]
fn damaged_models_are_refused_at_most() {
    for sound in [model(&block(), 17), model(&parts(), 18), constants::calls()] {
        imported(&sound).expect("a program");
        damaged(&sound);
    }
}

/// Imports a model with bytes of it changed, many times.
fn damaged(sound: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut state = 7u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..2000 {
        let mut bytes = sound.to_vec();
        for _ in 0..1 + next(3) {
            let at = 1 + next(bytes.len() - 1);
            match next(3) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][next(5)],
                _ => bytes.truncate(at.max(2)),
            }
            if bytes.len() < 3 {
                break;
            }
        }
        if let Ok(imported) = import(written(&folder, &bytes)) {
            imported.graph.verify().expect("a sound graph");
        }
    }
}

#[test]
fn functions_that_call_themselves_end() {
    let call = message(1, &[text_field(1, "x"), text_field(2, "y"), text_field(4, "F"), text_field(7, "d")].concat());
    let inner = message(7, &[text_field(1, "a"), text_field(2, "b"), text_field(4, "F"), text_field(7, "d")].concat());
    let function =
        message(25, &[text_field(1, "F"), text_field(4, "a"), text_field(5, "b"), inner, text_field(10, "d")].concat());
    let graph = [call, info(11, "x", &[2]), info(12, "y", &[2])];
    let error = imported(&[model(&graph, 17), function].concat()).expect_err("refused");
    assert!(error.contains("deep"), "{error}");
}

/// An input or output whose type is the message `kind`.
fn typed(field: u64, name: &str, kind: &[u8]) -> Vec<u8> {
    message(field, &[text_field(1, name), message(2, kind)].concat())
}

#[test]
fn a_sequence_is_given_as_its_tensors() {
    let element = message(1, &number(1, 1));
    let sequence = message(4, &message(1, &element));
    let mut graph = vec![
        node("SplitToSequence", &["x"], "parts", &[("axis", 1), ("keepdims", 0)]),
        info(11, "x", &[2, 3]),
        typed(12, "parts", &sequence),
    ];
    let imported_graph = imported(&model(&graph, 17)).expect("a program").graph;
    let outputs: Vec<&str> = imported_graph.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(outputs, ["parts.0", "parts.1", "parts.2"]);
    assert_eq!(imported_graph.ty(imported_graph.outputs[1].value).to_string(), "f32[2]");
    // The name of another output.
    graph.push(info(12, "parts.1", &[2]));
    graph.push(node("Relu", &["x"], "parts.1", &[]));
    let error = imported(&model(&graph, 17)).expect_err("refused");
    assert!(error.contains("two outputs of this name"), "{error}");
    // How many tensors a caller would give is not known.
    let graph = [node("SequenceLength", &["s"], "n", &[]), typed(11, "s", &sequence), info(12, "n", &[])];
    let error = imported(&model(&graph, 17)).expect_err("refused");
    assert!(error.contains("input `s`") && error.contains("SequenceConstruct"), "{error}");
}

#[test]
fn unsigned_integers_are_inputs_like_others() {
    let wide = message(1, &[number(1, 13), message(2, &message(1, &number(1, 2)))].concat());
    let graph = [node("Add", &["x", "x"], "y", &[]), typed(11, "x", &wide), typed(12, "y", &wide)];
    let graph = imported(&model(&graph, 17)).expect("a program").graph;
    assert_eq!(graph.ty(graph.outputs[0].value).to_string(), "u64[2]");
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    let far = 1i64 << 40;
    let graphs = [
        vec![
            node("Col2Im", &["x", "image", "block"], "y", &[]),
            ints("image", &[far, far]),
            ints("block", &[1, far]),
            info(11, "x", &[1, 4, 4]),
        ],
        vec![
            node("Col2Im", &["x", "image", "block"], "y", &[]),
            ints("image", &[1 << 21, 1]),
            ints("block", &[1 << 20, 1]),
            info(11, "x", &[1, 1 << 20, 1 << 20]),
        ],
        vec![
            node("STFT", &["x", "step", "", "frame"], "y", &[]),
            ints("step", &[1]),
            ints("frame", &[far]),
            info(11, "x", &[1, far, 1]),
        ],
        vec![node("DFT", &["x"], "y", &[("axis", 1)]), info(11, "x", &[1, far, 1])],
        vec![node("MelWeightMatrix", &["n", "n", "n", "n", "n"], "y", &[]), ints("n", &[far]), info(11, "x", &[1])],
        vec![node("Det", &["x"], "y", &[]), info(11, "x", &[4096, 4096])],
        vec![
            node("RoiAlign", &["x", "b", "i"], "y", &[("output_height", far), ("sampling_ratio", far)]),
            info(11, "x", &[1, 1, 4, 4]),
            info(11, "b", &[1, 4]),
            info(11, "i", &[1]),
        ],
        vec![node("MaxPool", &["x"], "y", &[("kernel_shape", far), ("storage_order", 1)]), info(11, "x", &[1, 1, far])],
        vec![node("SplitToSequence", &["x"], "y", &[]), info(11, "x", &[1 << 30])],
    ];
    for mut graph in graphs {
        graph.push(info(12, "y", &[1]));
        let error = imported(&model(&graph, 17)).expect_err("refused");
        assert!(!error.is_empty());
    }
}
