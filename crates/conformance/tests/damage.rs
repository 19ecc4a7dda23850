//! Damaged files are refused with an error, never with a panic, and never give other numbers.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use proptest::{prelude::*, strategy::ValueTree};
use regraft::Engine;
use regraft_backend_cpu::Isa;
use regraft_compile::pipeline::Options;
use regraft_conformance::{Case, assert_same, backend, build, frozen};

fn engine_bytes(mode_frozen: bool) -> Vec<u8> {
    let case = Case::open("mlp_gelu");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("e.rgf");
    let model = case.model(case.compile());
    let engine = if mode_frozen { frozen(&model) } else { case.compile() };
    engine.write(&path).unwrap();
    fs::read(path).unwrap()
}

/// Reads a damaged engine; `Err` names the file.
fn read(bytes: &[u8], folder: &Path) -> Result<(), String> {
    let path = folder.join("damaged.rgf");
    fs::write(&path, bytes).unwrap();
    match Engine::read(&path) {
        Ok(_) => Ok(()),
        Err(e) if e.to_string().contains("damaged.rgf") => Err(e.to_string()),
        Err(e) => panic!("the error does not name the file: {e}"),
    }
}

#[test]
fn any_flipped_bit_of_an_engine_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for frozen in [false, true] {
        let bytes = engine_bytes(frozen);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        for _ in 0..200 {
            let at = (0..bytes.len() * 8).new_tree(&mut runner).unwrap().current();
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(read(&damaged, folder.path()).is_err(), "bit {at}");
        }
        for len in [0, 1, 63, 64, bytes.len() / 2, bytes.len() - 1] {
            assert!(read(&bytes[..len], folder.path()).is_err(), "{len} bytes");
        }
    }
}

/// What a program gives, if it can be imported: damage in bytes that nobody reads changes nothing.
fn outputs(program: &Path, case: &Case) -> Option<Vec<regraft::Tensor>> {
    let imported = regraft_import::import_pt2(program).ok()?;
    let isa = Isa::detect();
    let output = build(imported.graph, &imported.weights, isa, Options::default()).ok()?;
    regraft::model(output.engine, backend(isa)).ok()?.run(&case.tensors("input")).ok()
}

#[test]
fn a_damaged_program_is_refused_or_the_same() {
    let case = Case::open("conv_bn");
    let whole = fs::read(case.program()).unwrap();
    let expected = outputs(&case.program(), &case).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pt2");
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut refused = 0;
    for _ in 0..150 {
        let at = (0..whole.len() * 8).new_tree(&mut runner).unwrap().current();
        let mut damaged = whole.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        fs::write(&path, damaged).unwrap();
        match catch_unwind(AssertUnwindSafe(|| outputs(&path, &case))).expect("no panic") {
            Some(got) => assert_same("a flip that nobody reads", &got, &expected),
            None => refused += 1,
        }
    }
    assert!(refused > 50, "most flips are found: {refused} of 150");
    for len in (0..whole.len()).step_by(whole.len() / 20) {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(regraft_import::import_pt2(&path).is_err(), "{len} bytes");
    }
}
