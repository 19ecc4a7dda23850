//! Engine files with right digests: the input holds the sections. What is read must be sound, and runs if it is small.
//! Nothing that is refused is kept, so that what follows it is looked at; `cache_entry` looks at how files are refused.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};
use regraft_fuzz::{Parts, engine};

fuzz_target!(|input: &[u8]| -> Corpus {
    let parts = Parts::of(input);
    let Some(found) = engine::read(&engine::sealed(&parts, None)) else { return Corpus::Reject };
    engine::examine(&found);
    engine::run(found, parts.settings);
    Corpus::Keep
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    engine::mutate(data, size, max_size, seed)
});
