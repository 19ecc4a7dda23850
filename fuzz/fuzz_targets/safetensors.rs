//! Up to the first zero the bytes are the header of a safetensors file, then its data; the length of the header is right.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (header, data) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let length = (header.len() as u64 + 1).to_le_bytes();
    regraft_fuzz::open("model.safetensors", &[&length[..], b"{", header, data].concat());
});
