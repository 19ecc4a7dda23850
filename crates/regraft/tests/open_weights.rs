//! Weights from files of every format that a refit takes.

use std::path::{Path, PathBuf};

use regraft::{Compiler, RefitOptions, Threads};

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

#[test]
fn r_9_a_program_is_refitted_with_the_weights_of_a_program() {
    let program = beside("conformance/fixtures/linear.pt2");
    let compiled = Compiler::new().threads(Threads::Count(1)).compile(&program).expect("a program");
    let model = compiled.into_model().expect("a model");
    let weights = regraft::open_weights(&program).expect("its weights");
    let report = model.refit(&weights, &RefitOptions::default()).expect("a refit");
    assert!(report.recomputed_slots.is_empty(), "the weights are the same");
}

#[test]
fn r_9_other_formats_are_told_by_their_content() {
    assert_eq!(regraft::open_weights(beside("checkpoint/tests/files/module.pth")).expect("a state dict").len(), 7);
    let safetensors = beside("conformance/fixtures/linear.safetensors");
    assert!(!regraft::open_weights(&safetensors).expect("tensors").is_empty());
    let error = regraft::open_weights(beside("checkpoint/tests/files/evil.pt")).expect_err("refused").to_string();
    assert!(error.contains("an object of `posix.system`"), "it is named, and was not made: {error}");
}
