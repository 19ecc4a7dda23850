//! Initializers of ONNX models, whose bytes are written here by hand.

use std::fs;

use regraft_tensor::{Buffer, DType};
use regraft_weights::StateDict;

use crate::{
    damage, names, open, open_as, refused, tensor,
    wire::{message, number as int, varint},
};

/// A field that holds text, bytes, a message or packed numbers.
fn bytes(number: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    message(number, content.as_ref())
}

fn ints(number: u64, values: &[i64]) -> Vec<u8> {
    bytes(number, values.iter().flat_map(|v| varint(*v as u64)).collect::<Vec<u8>>())
}

/// A TensorProto of this name, dtype and shape, with fields for its values.
fn tensor_of(name: &str, data_type: i64, dims: &[i64], values: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|dim| int(1, *dim)).collect();
    [dims, int(2, data_type), values.to_vec(), bytes(8, name)].concat()
}

fn model(initializers: &[Vec<u8>]) -> Vec<u8> {
    let node = bytes(1, bytes(4, "Gemm"));
    let initializers: Vec<u8> = initializers.iter().flat_map(|tensor| bytes(5, tensor)).collect();
    let graph = [node, bytes(2, "graph"), initializers].concat();
    [int(1, 8), bytes(2, "by hand"), bytes(7, graph), bytes(8, int(2, 17))].concat()
}

fn one(data_type: i64, dims: &[i64], values: &[u8]) -> Result<StateDict, String> {
    open_as("x.onnx", &model(&[tensor_of("w", data_type, dims, values)]))
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn external(entries: &[(&str, &str)]) -> Vec<u8> {
    let entry = |(key, value): &(&str, &str)| bytes(13, [bytes(1, key), bytes(2, value)].concat());
    [entries.iter().flat_map(entry).collect(), int(14, 1)].concat()
}

#[test]
fn raw_bytes_are_read_in_every_dtype() {
    for (data_type, dtype, raw, expected) in [
        (1, DType::F32, f32s(&[1.5, -2.0]), [1.5, -2.0]),
        (2, DType::U8, vec![0, 255], [0., 255.]),
        (3, DType::I8, vec![0x80, 0x7f], [-128., 127.]),
        (5, DType::I16, [-300i16, 300].map(i16::to_le_bytes).concat(), [-300., 300.]),
        (6, DType::I32, [-5i32, 6].map(i32::to_le_bytes).concat(), [-5., 6.]),
        (7, DType::I64, [-(1i64 << 40), 7].map(i64::to_le_bytes).concat(), [-1099511627776., 7.]),
        (9, DType::Bool, vec![1, 0], [1., 0.]),
        (10, DType::F16, vec![0x00, 0x3e, 0x00, 0xc0], [1.5, -2.0]),
        (11, DType::F64, [1.5f64, -2.0].map(f64::to_le_bytes).concat(), [1.5, -2.0]),
        (16, DType::BF16, vec![0xc0, 0x3f, 0x00, 0xc0], [1.5, -2.0]),
    ] {
        let dict = one(data_type, &[2, 1], &bytes(9, raw)).expect("a model");
        let w = tensor(&dict, "w");
        assert_eq!((w.dtype(), w.shape(), w.to_f64_vec()), (dtype, &[2, 1][..], expected.to_vec()));
    }
}

#[test]
fn numbers_are_read_packed_or_not() {
    let fixed = |number: u64, wire: u64, value: &[u8]| [&varint(number << 3 | wire)[..], value].concat();
    for (data_type, dtype, values, expected) in [
        (1, DType::F32, bytes(4, f32s(&[1.5, -2.0])), [1.5, -2.0]),
        (
            1,
            DType::F32,
            [fixed(4, 5, &1.5f32.to_le_bytes()), fixed(4, 5, &(-2f32).to_le_bytes())].concat(),
            [1.5, -2.0],
        ),
        (2, DType::U8, ints(5, &[0, 255]), [0., 255.]),
        (3, DType::I8, ints(5, &[-128, 127]), [-128., 127.]),
        (5, DType::I16, [int(5, -300), int(5, 300)].concat(), [-300., 300.]),
        (6, DType::I32, [ints(5, &[-5]), int(5, 6)].concat(), [-5., 6.]),
        (7, DType::I64, ints(7, &[-(1 << 40), 7]), [-1099511627776., 7.]),
        (9, DType::Bool, ints(5, &[1, 0]), [1., 0.]),
        (10, DType::F16, ints(5, &[0x3e00, 0xc000]), [1.5, -2.0]),
        (11, DType::F64, bytes(10, [1.5f64, -2.0].map(f64::to_le_bytes).concat()), [1.5, -2.0]),
        (16, DType::BF16, ints(5, &[0x3fc0, 0xc000]), [1.5, -2.0]),
    ] {
        let dict = one(data_type, &[2], &values).expect("a model");
        assert_eq!((tensor(&dict, "w").dtype(), tensor(&dict, "w").to_f64_vec()), (dtype, expected.to_vec()));
    }
    let dict = one(1, &[], &bytes(4, f32s(&[4.0]))).expect("a scalar");
    assert_eq!((tensor(&dict, "w").shape(), tensor(&dict, "w").to_f64_vec()), (&[][..], vec![4.0]));
    assert_eq!(tensor(&one(1, &[0, 3], &[]).expect("an empty tensor"), "w").shape(), [0, 3]);
}

#[test]
fn aligned_bytes_are_mapped() {
    let bias = tensor_of("b", 2, &[3], &bytes(9, [1, 2, 3]));
    let dict = open_as("x.onnx", &model(&[tensor_of("w", 1, &[1], &bytes(9, f32s(&[1.0]))), bias])).expect("a model");
    assert_eq!(names(&dict), ["b", "w"]);
    assert!(matches!(tensor(&dict, "b").buffer(), Buffer::Mapped(..)));
    assert!(tensor(&dict, "w").as_slice::<f32>().is_some());
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    for (result, expected) in [
        (one(1, &[2], &bytes(9, [0; 7])), "`w`: no valid ONNX model: f32[2] needs 8 bytes, found 7"),
        (one(1, &[2], &bytes(9, [0; 12])), "f32[2] needs 8 bytes, found 12"),
        (one(1, &[-2], &[]), "`w`: its shape [-2] has a negative size"),
        (one(1, &[1 << 40, 1 << 40], &[]), "too large for memory"),
        (one(1, &[1 << 40], &[]), "unfold to 4398046511104 bytes"),
        (one(1, &[1; 65], &[]), "more than 64 axes"),
        (one(1, &[1 << 26], &bytes(4, f32s(&[1.0]))), "`w`: expected 67108864 values, found 16 bytes in all"),
        (one(1, &[2], &[]), "`w`: expected 8 bytes of values, found 0"),
        (one(1, &[1], &bytes(4, f32s(&[1.0, 2.0]))), "more values than its shape"),
        (one(1, &[1], &bytes(4, [0; 3])), "field 4 does not have the type that ONNX gives it"),
        (one(1, &[1], &ints(5, &[1])), "its values stand in int32_data, expected float_data for f32"),
        (one(1, &[1], &[ints(5, &[1]), bytes(9, [0; 4])].concat()), "values of several kinds"),
        (one(3, &[1], &ints(5, &[128])), "the value 128 does not fit i8"),
        (one(2, &[1], &ints(5, &[-1])), "the value -1 does not fit u8"),
        (one(9, &[1], &ints(5, &[2])), "a bool is 0 or 1, found the byte 2"),
        (one(1, &[1], &[bytes(3, int(1, 0)), bytes(9, [0; 4])].concat()), "one segment of a tensor"),
        (one(8, &[1], &bytes(6, "text")), "`w` has dtype string, which is not supported"),
        (one(14, &[1], &ints(11, &[1])), "`w` has dtype complex64"),
        (one(17, &[1], &bytes(9, [0])), "`w` has dtype float8_e4m3fn"),
        (one(0, &[1], &[]), "`w` has dtype number 0 of ONNX"),
    ] {
        refused(result, expected);
    }
}

#[test]
fn wrong_models_are_refused() {
    let w = || tensor_of("w", 2, &[1], &bytes(9, [7]));
    for (file, expected) in [
        (model(&[w(), w()]), "two initializers called `w`"),
        (model(&[tensor_of("", 2, &[1], &bytes(9, [7]))]), "an initializer has no name"),
        ([int(1, 8), bytes(7, bytes(15, []))].concat(), "a sparse initializer, which is not read"),
        (int(1, 8), "it has no graph"),
        ([int(1, 8), int(7, 1)].concat(), "field 7 does not have the type"),
        ([int(1, 8), vec![0x3a, 100]].concat(), "byte 4: 100 bytes reach beyond the end of their message"),
        ([int(1, 8), vec![0x0b]].concat(), "the wire type 3 is not known"),
        ([int(1, 8), vec![0x00, 0x00]].concat(), "a field has the number 0"),
        ([vec![0x08], vec![0xff; 11]].concat(), "more than 64 bits"),
    ] {
        refused(open_as("x.onnx", &file), expected);
    }
    assert!(open_as("x.onnx", &model(&[])).expect("no initializers").is_empty());
    // A graph in two parts is the sum of them.
    let parts = [int(1, 8), bytes(7, bytes(5, w())), bytes(7, bytes(2, "g"))].concat();
    assert_eq!(names(&open_as("x.onnx", &parts).expect("a model")), ["w"]);
}

#[test]
fn bytes_in_another_file_are_mapped_and_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.onnx");
    fs::write(folder.path().join("x.data"), [[0; 8].to_vec(), f32s(&[1.0, 2.0, 3.0])].concat()).expect("a write");
    let with = |entries: &[(&str, &str)]| {
        fs::write(&path, model(&[tensor_of("w", 1, &[2], &external(entries))])).expect("a write");
        open(&path)
    };
    let place = [("location", "x.data"), ("offset", "8"), ("length", "8"), ("checksum", "of something")];
    let dict = with(&place).expect("a model");
    assert_eq!(tensor(&dict, "w").to_f64_vec(), [1.0, 2.0]);
    assert!(matches!(tensor(&dict, "w").buffer(), Buffer::Mapped(..)));
    // Without a length, as many bytes as it needs.
    assert_eq!(tensor(&with(&[place[0], ("offset", "12")]).expect("a model"), "w").to_f64_vec(), [2.0, 3.0]);

    for (entries, expected) in [
        (&[("location", "x.data"), ("offset", "16")][..], "`w`: expected 8 bytes at byte 16 of x.data, which has 20"),
        (&[("location", "x.data"), ("offset", "18446744073709551615")], "at byte 18446744073709551615"),
        (&[("location", "x.data"), ("offset", "-1")], "the offset `-1` is not a natural number"),
        (&[("location", "x.data"), ("length", "4")], "f32[2] needs 8 bytes, found 4"),
        (&[("location", "y.data")], "put that file beside the model"),
        (&[("location", "../x.data")], "not a plain file name"),
        (&[("location", "/etc/passwd")], "not a plain file name"),
        (&[], "another file that has no name"),
    ] {
        refused(with(entries), expected);
    }
    damage(&model(&[tensor_of("w", 1, &[2], &external(&place))]), |bytes| {
        fs::write(&path, bytes).expect("a write");
        open(&path)
    });
}

#[test]
fn damaged_models_are_refused_or_read() {
    let tensors = [
        tensor_of("weight", 1, &[2, 2], &bytes(9, f32s(&[1.0, 2.0, 3.0, 4.0]))),
        tensor_of("bias", 1, &[2], &bytes(4, f32s(&[1.0, 2.0]))),
        tensor_of("index", 7, &[2], &ints(7, &[-1, 300])),
        tensor_of("half", 10, &[2], &ints(5, &[0x3e00, 0xc000])),
    ];
    damage(&model(&tensors), |bytes| open_as("x.onnx", bytes));
}

/// A model of one node in its graph.
fn of_node(node: &[u8]) -> Vec<u8> {
    let w = tensor_of("w", 2, &[1], &bytes(9, [7]));
    [int(1, 8), bytes(7, [bytes(1, node), bytes(5, w)].concat())].concat()
}

/// A node of these parts that makes `output`.
fn node(op: &str, output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    [bytes(2, output), bytes(4, op), attributes.iter().flat_map(|a| bytes(5, a)).collect()].concat()
}

/// An attribute that is a tensor of two floats.
fn pair(name: &str, values: &[f32]) -> Vec<u8> {
    [bytes(1, name), bytes(5, tensor_of("", 1, &[2], &bytes(9, f32s(values))))].concat()
}

fn constants(dict: &StateDict) -> Vec<(&str, Vec<f64>)> {
    dict.constants().into_iter().flatten().map(|(name, tensor)| (name.as_str(), tensor.to_f64_vec())).collect()
}

#[test]
fn tensors_in_nodes_are_constants_and_no_weights() {
    let float = [bytes(1, "value_float"), vec![2 << 3 | 5], 1.5f32.to_le_bytes().to_vec()].concat();
    let dict = open_as("x.onnx", &of_node(&node("Constant", "c", &[float]))).expect("a model");
    assert_eq!((names(&dict), constants(&dict)), (vec!["w"], vec![("c", vec![1.5])]));
    let ints = [bytes(1, "value_ints"), ints(8, &[2, -3])].concat();
    let dict = open_as("x.onnx", &of_node(&node("Constant", "c", &[ints]))).expect("a model");
    assert_eq!(constants(&dict), [("c", vec![2.0, -3.0])]);
    // An attribute of another node is called by that node's result.
    let filled = node("ConstantOfShape", "y", &[pair("value", &[1.0, 2.0])]);
    assert_eq!(constants(&open_as("x.onnx", &of_node(&filled)).expect("a model")), [("y/value", vec![1.0, 2.0])]);
    let unread = [bytes(2, ""), bytes(4, "Constant"), bytes(5, pair("value", &[1.0, 2.0]))].concat();
    assert!(constants(&open_as("x.onnx", &of_node(&unread)).expect("a model")).is_empty());
    // Graphs inside of nodes: names that are there twice are told apart by where they are.
    let graph = |values: &[f32], own: &str| {
        let constant = bytes(1, node("Constant", "c", &[pair("value", values)]));
        let own = tensor_of(own, 1, &[2], &bytes(9, f32s(values)));
        bytes(6, [constant, bytes(5, own)].concat())
    };
    let then = [bytes(1, "then_branch"), graph(&[1.0, 2.0], "a")].concat();
    let other = [bytes(1, "else_branch"), graph(&[3.0, 4.0], "w")].concat();
    let dict = open_as("x.onnx", &of_node(&node("If", "y", &[then, other]))).expect("a model");
    let expected = [
        ("a", vec![1.0, 2.0]),
        ("y/else_branch/c", vec![3.0, 4.0]),
        ("y/else_branch/w", vec![3.0, 4.0]),
        ("y/then_branch/c", vec![1.0, 2.0]),
    ];
    assert_eq!(constants(&dict), expected);
    let function = [bytes(1, "F"), bytes(7, node("Constant", "w", &[pair("value", &[5.0, 6.0])])), bytes(10, "d")];
    let dict = open_as("x.onnx", &[of_node(&[]), bytes(25, function.concat())].concat()).expect("a model");
    assert_eq!(constants(&dict), [("d/F/w", vec![5.0, 6.0])]);
}

#[test]
fn constants_that_are_not_read_are_named_or_refused() {
    let text = [bytes(1, "value"), bytes(5, tensor_of("", 8, &[1], &bytes(6, "word")))].concat();
    let dict = open_as("x.onnx", &of_node(&node("Constant", "c", &[text]))).expect("a model");
    assert_eq!(dict.skipped().get("c").map(String::as_str), Some("a tensor of string"));
    let sparse = [bytes(1, "sparse_value"), bytes(22, [])].concat();
    refused(open_as("x.onnx", &of_node(&node("Constant", "c", &[sparse]))), "a sparse constant, which is not read");
    let short = [bytes(1, "value"), bytes(5, tensor_of("", 1, &[3], &bytes(9, f32s(&[1.0]))))].concat();
    refused(open_as("x.onnx", &of_node(&node("Constant", "c", &[short]))), "`c`: no valid ONNX model: f32[3] needs 12");
    let twice = [pair("value", &[1.0, 2.0]), pair("value", &[3.0, 4.0])];
    refused(open_as("x.onnx", &of_node(&node("Constant", "c", &twice))), "a second tensor is called `c`");
    // Names do not take more memory than the file gives reason for.
    let long = "n".repeat(1 << 16);
    let many: Vec<Vec<u8>> = (0..1 << 13).map(|i| pair(&format!("v{i}"), &[1.0, 2.0])).collect();
    refused(open_as("x.onnx", &of_node(&node("F", &long, &many))), "more than the");
    damage(&of_node(&node("Constant", "c", &[pair("value", &[1.0, 2.0])])), |bytes| open_as("x.onnx", bytes));
}
