//! The text of programs. What is read prints as text that reads as the same.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use regraft_ir::text;

fuzz_target!(|text: &str| {
    match text::parse(text) {
        Ok(graph) => {
            let printed = text::print(&graph);
            let parsed = text::parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
            assert_eq!(text::print(&parsed), printed);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if !seed.is_multiple_of(3)
        && let Some(mutated) = regraft_fuzz::mutated_text(&data[..size], seed, max_size)
    {
        data[..mutated.len()].copy_from_slice(&mutated);
        return mutated.len();
    }
    fuzzer_mutate(data, size, max_size)
});
