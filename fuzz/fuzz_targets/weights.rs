//! Any bytes as a weight file: the content says which format is read.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Only names tell indexes of shards from other files.
    let name = if bytes.starts_with(b"{") { "model.safetensors.index.json" } else { "model" };
    regraft_fuzz::open(name, bytes);
});
