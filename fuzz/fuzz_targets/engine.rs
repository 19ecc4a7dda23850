//! Any bytes as an engine file. Half of the changes are given right digests of header, table and, if they say where they
//! are, sections: what is behind the digests is looked at, too.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

const DIGEST: usize = 32;
const HEADER: usize = 64;
const ENTRY: usize = 56;

fuzz_target!(|bytes: &[u8]| {
    if let Some(engine) = regraft_fuzz::engine::read(bytes) {
        regraft_fuzz::engine::examine(&engine);
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    match seed % 4 {
        0 => seal_sections(&mut data[..size]),
        1 => seal_header(&mut data[..size]),
        _ => {}
    }
    size
});

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<8>()?;
    usize::try_from(u64::from_le_bytes(*bytes)).ok()
}

/// Number of sections, and end of the table.
fn table(file: &[u8]) -> Option<(usize, usize)> {
    let sections = number(file, 24)? & 0xffff_ffff;
    let end = sections.checked_mul(ENTRY)?.checked_add(HEADER)?;
    (end <= file.len()).then_some((sections, end))
}

fn seal_header(file: &mut [u8]) {
    if let Some((_, end)) = table(file) {
        let digest = blake3::Hasher::new().update(&file[..DIGEST]).update(&file[HEADER..end]).finalize();
        file[DIGEST..HEADER].copy_from_slice(digest.as_bytes());
    }
}

fn seal_sections(file: &mut [u8]) {
    let sections = table(file).map_or(0, |(sections, _)| sections);
    for entry in (0..sections).map(|section| HEADER + ENTRY * section) {
        let (Some(start), Some(len)) = (number(file, entry + 8), number(file, entry + 16)) else { continue };
        let Some(content) = start.checked_add(len).and_then(|end| file.get(start..end)) else { continue };
        let digest = blake3::hash(content);
        file[entry + 24..entry + ENTRY].copy_from_slice(digest.as_bytes());
    }
    // It covers the digests above.
    seal_header(file);
}
