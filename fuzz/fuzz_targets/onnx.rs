//! After the first byte, which says how much around them is sound, the bytes are an ONNX model, its graph, or one of its
//! initializers with others before and behind.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// A field that holds a message.
fn message(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
    bytes
}

/// An initializer of f32[1].
fn plain(name: &str) -> Vec<u8> {
    let fields = [&[0x08, 1, 0x10, 1][..], &message(8, name.as_bytes()), &message(9, &[0; 4])].concat();
    message(5, &fields)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let inside = match kind % 3 {
        0 => bytes.to_vec(),
        1 => message(7, bytes),
        _ => message(7, &[plain("a"), message(5, bytes), plain("b")].concat()),
    };
    let model = [&[0x08, 8][..], &inside].concat();
    regraft_fuzz::open("model.onnx", &model);
    // The whole of it, translated.
    match regraft_import::import_onnx(regraft_fuzz::file("model.onnx", &model)) {
        Ok(imported) => imported.graph.verify().expect("a sound graph"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
