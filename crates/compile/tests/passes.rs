//! Golden tests of passes: each file in `tests/passes` holds the name of a pass, a target, a program, and the program after
//! it.
//!
//! `REGRAFT_BLESS=1 cargo test -p regraft-compile --test passes` rewrites the expected halves.

use std::{fs, path::Path};

use regraft_backend::Codegen;
use regraft_backend_cpu::{CpuCodegen, Isa};
use regraft_compile::lower::{PASSES, run_pass};
use regraft_ir::text;

/// The compile-time half of a backend.
fn codegen(target: &str) -> Box<dyn Codegen> {
    match target {
        "cpu" => Box::new(CpuCodegen::new(Isa::Portable)),
        other => panic!("there is no target `{other}`"),
    }
}

const SEPARATOR: &str = "\n---- after ----\n";

#[test]
fn passes_do_what_their_files_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passes");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let bless = std::env::var_os("REGRAFT_BLESS").is_some();
    let mut wrong = Vec::new();
    for file in files {
        let content = fs::read_to_string(&file).unwrap();
        let (head, expected) = content.split_once(SEPARATOR).unwrap_or((&content, ""));
        let (first, rest) = head.split_once('\n').unwrap();
        let (second, program) = rest.split_once('\n').unwrap();
        let name = first.strip_prefix("// pass: ").expect("the first line names the pass").trim();
        let target = second.strip_prefix("// target: ").expect("the second line names the target").trim();
        let codegen = codegen(target);
        let pass = PASSES.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("there is no pass `{name}`"));
        let mut graph = text::parse(program).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        run_pass(pass, &mut graph, codegen.lowering()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let after = text::print(&graph);
        let again = text::parse(&after).unwrap_or_else(|e| panic!("{}: printed text: {e}", file.display()));
        assert_eq!(text::print(&again), after, "{}: the text form round-trips", file.display());
        if bless {
            fs::write(&file, format!("{head}{SEPARATOR}{after}")).unwrap();
        } else if after != expected {
            wrong.push(format!("{}:\n{after}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "the results differ from the files; bless them if that is meant\n{}", wrong.join("\n"));
}
