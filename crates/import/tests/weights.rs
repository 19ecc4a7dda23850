//! State dicts of exported programs, read without the programs.

use std::path::{Path, PathBuf};

use regraft_import::{import_pt2, read_pt2_weights};

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn r_9_a_program_gives_the_weights_that_it_is_imported_with() {
    for name in ["linear", "conv_bn", "constants", "lstm", "tied"] {
        let path = beside(&format!("../conformance/fixtures/{name}.pt2"));
        let dict = read_pt2_weights(&path).expect("a state dict");
        let imported = import_pt2(&path).expect("a program");
        let mut names = Vec::new();
        let sources = imported.graph.sources.iter().zip(&imported.weights);
        for (source, value) in sources.filter(|(s, _)| s.kind.in_state_dict()) {
            let value = value.as_ref().expect("a value");
            for name in source.aliases.iter().chain([&source.name]) {
                assert!(dict.get(name).is_some_and(|t| t.bit_equal(value)), "{name} differs");
                names.push(name.as_str());
            }
        }
        names.sort_unstable();
        assert_eq!(dict.iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
    }
}

#[test]
fn r_9_weights_of_programs_with_unknown_operators_are_read() {
    let path = beside("tests/aten/refused/unknown.pt2");
    assert!(import_pt2(&path).is_err());
    read_pt2_weights(&path).expect("a state dict");
}
