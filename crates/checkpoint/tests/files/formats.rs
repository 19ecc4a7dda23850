//! Which format a file has, safetensors, and indices of shards.

use std::{collections::BTreeMap, fs, path::Path};

use regraft_checkpoint::is_exported_program;
use regraft_tensor::{Buffer, DType};

use zip::CompressionMethod::Stored;

use crate::{beside, damage, names, open, open_as, refused, tensor, zipped};

/// A safetensors file with this header, padded to `header_len` bytes, and these bytes of tensors.
fn safetensors(header: &str, header_len: usize, data: &[u8]) -> Vec<u8> {
    let header = format!("{header:<header_len$}");
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A file with one tensor `name` of the values 1, 2.
fn small(name: &str) -> Vec<u8> {
    let header =
        format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"__metadata__":{{"format":"pt"}}}}"#);
    safetensors(&header, 120, &[1.0f32, 2.0].map(f32::to_le_bytes).concat())
}

#[test]
fn safetensors_are_mapped() {
    let dict = open_as("x.safetensors", &small("a")).expect("a file");
    assert_eq!((tensor(&dict, "a").dtype(), tensor(&dict, "a").to_f64_vec()), (DType::F32, vec![1., 2.]));
    assert!(matches!(tensor(&dict, "a").buffer(), Buffer::Mapped(..)));
    assert_eq!(dict.metadata(), &BTreeMap::from([("format".to_owned(), "pt".to_owned())]));

    let float8 = r#"{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#;
    let dict = open_as("x.safetensors", &safetensors(float8, 64, &[0; 2])).expect("a file");
    assert_eq!((dict.len(), dict.skipped()["w"].as_str()), (0, "a tensor of F8_E4M3"));
    let outside = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    refused(open_as("x.safetensors", &safetensors(outside, 64, &[0; 8])), "no valid safetensors file");
    let bools = r#"{"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}"#;
    refused(open_as("x.safetensors", &safetensors(bools, 64, &[1, 2])), "a bool is 0 or 1, found the byte 2");
    damage(&small("a"), |bytes| open_as("x.safetensors", bytes));
}

#[test]
fn the_length_of_a_header_is_no_other_format() {
    // Headers whose lengths begin like a zip file and like an ONNX model.
    for len in [0x4b50, 0x08, 0x108] {
        let header = if len == 0x08 { "{}" } else { r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"# };
        let data: &[u8] = if len == 0x08 { &[] } else { &[7] };
        let dict = open_as("x.safetensors", &safetensors(header, len, data)).expect("a file");
        assert_eq!(dict.len(), data.len());
    }
}

#[test]
fn unknown_files_are_refused_with_advice() {
    refused(open_as("x", b""), "it is empty");
    refused(open_as("x.gguf", b"GGUF\x03\0\0\0"), "it is a GGUF file");
    refused(open_as("x", b"hello"), "begins like none of the known formats");
    refused(open_as("x.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS");
    refused(open_as("x", b"\x80\x02}q\0."), "it is a pickle that torch.save did not write");
    let error = regraft_checkpoint::open(Path::new("/nowhere/x.pt")).expect_err("no file").to_string();
    assert!(error.starts_with("/nowhere/x.pt: "), "{error}");
}

#[test]
fn exported_programs_are_told_apart() {
    let program = beside("../../../conformance/fixtures/linear.pt2");
    assert!(is_exported_program(&program));
    refused(open(&program), "it is an exported program");
    refused(
        open_as("x", &zipped(&[("serialized_exported_program.json".into(), vec![])], Stored)),
        "an exported program",
    );
    assert!(!is_exported_program(&beside("plain.pt")));
    assert!(!is_exported_program(Path::new("/nowhere")));
}

#[test]
fn shards_are_read_by_their_index() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = folder.path().join("model.safetensors.index.json");
    let write = |text: &str| fs::write(&index, text).expect("a write");
    fs::write(folder.path().join("1.safetensors"), small("a")).expect("a write");
    fs::copy(beside("module.pth"), folder.path().join("2.bin")).expect("a copy");

    write(r#"{"metadata":{},"weight_map":{"a":"1.safetensors","0.bias":"2.bin"}}"#);
    let dict = open(&index).expect("shards");
    assert_eq!(dict.len(), 8);
    assert!(names(&dict).contains(&"a") && names(&dict).contains(&"0.weight"));

    for (text, expected) in [
        (r#"{"weight_map":{"b":"1.safetensors"}}"#, "the index says that it holds `b`, which it does not"),
        (
            r#"{"weight_map":{"a":"../1.safetensors"}}"#,
            "names the file `../1.safetensors`, which is not a plain file name",
        ),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "not a plain file name"),
        (r#"{"weight_map":{"a":""}}"#, "not a plain file name"),
        (r#"{"weight_map":{"a":7}}"#, "no valid index of shards"),
        ("[]", "no valid index of shards"),
    ] {
        write(text);
        refused(open(&index), expected);
    }
    write(r#"{"weight_map":{"a":"3.safetensors"}}"#);
    let error = regraft_checkpoint::open(&index).expect_err("a missing shard").to_string();
    assert!(error.contains("3.safetensors: "), "{error}");
    damage(br#"{"weight_map":{"a":"1.safetensors"}}"#, |bytes| {
        fs::write(&index, bytes).expect("a write");
        regraft_checkpoint::open(&index).map_err(|e| e.to_string())
    });
}
