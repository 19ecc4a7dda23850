//! Checks of the repository that cargo has no word for: `cargo run -p xtask -- check`.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode};

/// What each crate may depend on, of this workspace. Dependencies point one way; runtime and engine reach no importer, pass or
/// builder, so that a deployment holds no compiler.
const EDGES: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("ir", &["tensor"]),
    ("weights", &["tensor", "ir"]),
    ("checkpoint", &["tensor", "weights"]),
    ("adapter", &["tensor", "ir", "weights"]),
    ("backend", &["tensor", "ir", "weights", "adapter"]),
    ("backend-cpu", &["tensor", "ir", "weights", "backend"]),
    ("backend-cuda", &["tensor", "ir", "weights", "backend", "backend-cpu"]),
    ("engine", &["tensor", "ir", "weights", "backend"]),
    ("object-cache", &["tensor", "engine"]),
    ("runtime", &["tensor", "ir", "weights", "adapter", "backend", "engine"]),
    ("import", &["tensor", "ir", "weights", "checkpoint"]),
    ("compile", &["tensor", "ir", "weights", "backend", "engine"]),
];

/// Crates above the line: they may depend on everything.
const TOP: &[&str] = &["regraft", "cli", "conformance", "python"];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("check") {
        eprintln!("usage: cargo run -p xtask -- check");
        return ExitCode::from(2);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let problems = check_edges(&root);
    problems.iter().for_each(|p| eprintln!("error: {p}"));
    if problems.is_empty() {
        println!("crate dependencies point one way");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn check_edges(root: &Path) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut problems = Vec::new();
    let Ok(folders) = fs::read_dir(root.join("crates")) else { return vec!["there is no folder `crates`".into()] };
    for folder in folders.flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        if TOP.contains(&name.as_str()) {
            continue;
        }
        let Some(may) = allowed.get(name.as_str()) else {
            problems.push(format!("crate `{name}` is not in the table of xtask: say what it may depend on"));
            continue;
        };
        let manifest = fs::read_to_string(folder.path().join("Cargo.toml")).unwrap_or_default();
        for dependency in workspace_dependencies(&manifest) {
            if !may.contains(&dependency.as_str()) {
                problems.push(format!("crate `{name}` must not depend on `{dependency}`"));
            }
        }
    }
    problems
}

/// The crates of this workspace under `[dependencies]`; those under `[dev-dependencies]` are free.
fn workspace_dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[").find(|s| s.starts_with("dependencies]") || s.starts_with("[dependencies]"));
    let lines = section.unwrap_or_default().lines();
    let name = |line: &str| {
        let (name, _) = line.split_once(['.', ' ', '='])?;
        Some(name.strip_prefix("regraft-")?.to_owned())
    };
    lines.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_their_section() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nregraft-ir = { workspace = true }\nserde.workspace = true\n\n[dev-dependencies]\nregraft-import = { workspace = true }\n";
        assert_eq!(workspace_dependencies(manifest), ["ir"]);
    }
}
