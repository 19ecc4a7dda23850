//! What a file that is not an engine looks like, so that the error can say what to do with it.

use super::{ContainerErrorKind as Kind, layout};

const COMPILE: &str = "compile it first: regraft compile MODEL -o ENGINE.rgf";
const WEIGHTS: &str = "weights go into an engine that exists: regraft refit ENGINE.rgf --weights FILE";
const UNPACK: &str = "decompress it first";
const OTHER: &str = "give the .rgf file that regraft compile wrote";
const BINARY: &str = "copy the file again in binary mode";

/// Beginnings of files, what they mean and what to do.
const BEGINNINGS: &[(&[u8], &str, &str)] = &[
    (b"\x89RGF", "an engine file that a transfer in text mode has changed", BINARY),
    (b"\x09RGF", "an engine file that a transfer in text mode has changed", BINARY),
    (b"PK\x03\x04", "a zip archive, as .pt2 and .pt files are", COMPILE),
    (b"\x08\x07\x12", "an ONNX model", COMPILE),
    (b"\x08\x08\x12", "an ONNX model", COMPILE),
    (b"\x08\x09\x12", "an ONNX model", COMPILE),
    (b"\x08\x0a\x12", "an ONNX model", COMPILE),
    (b"GGUF", "a GGUF file", OTHER),
    (b"\x80\x02", "a Python pickle, as old .pt files are", OTHER),
    (b"\x80\x04", "a Python pickle, as old .pt files are", OTHER),
    (b"\x93NUMPY", "a NumPy array", OTHER),
    (b"\x7fELF", "a program or a shared library", OTHER),
    (b"\x1f\x8b", "a gzip-compressed file", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd-compressed file", UNPACK),
    (b"\xfd7zXZ", "an xz-compressed file", UNPACK),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch it first: git lfs pull"),
];

/// The error for a file that does not begin as an engine does.
pub(super) fn other_file(file: &[u8]) -> Kind {
    if !file.is_empty() && layout::MAGIC.starts_with(file) {
        return Kind::Truncated { expected: layout::HEADER_LEN as u64, found: file.len() as u64 };
    }
    let (looks_like, help) = look(file);
    Kind::NotAnEngine { looks_like, help }
}

/// The error for a directory.
pub(super) fn directory() -> Kind {
    Kind::NotAnEngine { looks_like: "a directory", help: "give the .rgf file inside it" }
}

/// The error for what is neither a file nor a directory.
pub(super) fn special_file() -> Kind {
    Kind::NotAnEngine { looks_like: "a device or a pipe", help: "save what comes from it to a file first" }
}

fn look(file: &[u8]) -> (&'static str, &'static str) {
    if file.is_empty() {
        return ("an empty file", "compile the model again, or copy the file again");
    }
    if let Some(&(_, looks_like, help)) = BEGINNINGS.iter().find(|(beginning, ..)| file.starts_with(beginning)) {
        return (looks_like, help);
    }
    if is_safetensors(file) {
        return ("a safetensors file", WEIGHTS);
    }
    if is_text(file) {
        return ("a text file", OTHER);
    }
    ("a file of an unknown kind", OTHER)
}

/// A safetensors file begins with the length of its JSON header, and the header with a brace.
fn is_safetensors(file: &[u8]) -> bool {
    let Some((len, rest)) = file.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*len) <= rest.len() as u64
}

fn is_text(file: &[u8]) -> bool {
    file.iter().take(512).all(|&byte| byte >= 0x20 && byte != 0x7f || b"\t\r\n".contains(&byte))
        && match str::from_utf8(&file[..file.len().min(512)]) {
            Ok(_) => true,
            // Cut inside of a character at the end of what is looked at.
            Err(error) => error.error_len().is_none(),
        }
}
