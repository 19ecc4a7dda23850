//! Files of `torch.save` before version 1.6. The first byte says which: pickles and storages behind a sound beginning, or a tar
//! file of three parts with right sizes.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// The magic number, the version, and sizes of C types.
const BEGINNING: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
/// What stands between the parts of an input.
const SEPARATOR: &[u8] = b"\n=====\n";

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let file = if kind & 1 == 0 { [BEGINNING, rest].concat() } else { tar(rest) };
    regraft_fuzz::open("model.pt", &file);
});

fn tar(bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    let mut file = Vec::new();
    for name in ["storages", "tensors", "pickle"] {
        let end = rest.windows(SEPARATOR.len()).position(|w| w == SEPARATOR).unwrap_or(rest.len());
        let part = &rest[..end];
        rest = rest.get(end + SEPARATOR.len()..).unwrap_or_default();
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", part.len()).as_bytes());
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        file.extend(header);
        file.extend(part);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    file.resize(file.len() + 1024, 0);
    file
}
