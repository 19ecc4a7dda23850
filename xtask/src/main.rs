//! Checks of the repository that cargo has no word for: `cargo run -p xtask -- check`. `cargo run -p xtask -- picture` draws
//! the crates.
#![forbid(unsafe_code)]

mod picture;

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode};

/// What each crate may depend on, of this workspace. Dependencies point one way; runtime and engine reach no importer, pass or
/// builder, so that a deployment holds no compiler.
const EDGES: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("ir", &["tensor"]),
    ("weights", &["tensor", "ir"]),
    ("checkpoint", &["tensor", "weights"]),
    ("delta", &["tensor", "weights"]),
    ("adapter", &["tensor", "ir", "weights"]),
    ("backend", &["tensor", "ir", "weights", "adapter"]),
    ("backend-cpu", &["tensor", "ir", "weights", "backend"]),
    ("backend-cuda", &["tensor", "ir", "weights", "backend", "backend-cpu"]),
    ("backend-mock", &["tensor", "ir", "weights", "backend"]),
    ("engine", &["tensor", "ir", "weights", "backend"]),
    ("object-cache", &["tensor", "engine"]),
    ("runtime", &["tensor", "ir", "weights", "adapter", "backend", "engine"]),
    ("import", &["tensor", "ir", "weights", "checkpoint"]),
    ("compile", &["tensor", "ir", "weights", "backend", "engine"]),
];

/// Crates above the line: they may depend on everything.
const TOP: &[&str] = &["regraft", "capi", "cli", "conformance", "python", "server"];

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (problems, done) = match std::env::args().nth(1).as_deref() {
        Some("check") => (
            [check_edges(&root), check_paths(&root), check_picture(&root)].concat(),
            "crate dependencies point one way, their picture is current, and the paths that the guides name exist",
        ),
        Some("picture") => (draw(&root).err().into_iter().collect(), picture::PLACE),
        _ => {
            eprintln!("usage: cargo run -p xtask -- check|picture");
            return ExitCode::from(2);
        }
    };
    problems.iter().for_each(|p| eprintln!("error: {p}"));
    if problems.is_empty() {
        println!("{done}");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn draw(root: &Path) -> Result<(), String> {
    let path = root.join(picture::PLACE);
    let drawn = picture::svg(root).and_then(|svg| fs::write(&path, svg));
    drawn.map_err(|error| format!("{}: {error}", path.display()))
}

fn check_picture(root: &Path) -> Vec<String> {
    let current = picture::svg(root).ok().zip(fs::read_to_string(root.join(picture::PLACE)).ok());
    if current.is_some_and(|(drawn, there)| drawn == there) {
        return Vec::new();
    }
    vec![format!("{} is not current: run `cargo run -p xtask -- picture`", picture::PLACE)]
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

/// The guides of those who change the code.
const GUIDES: &[&str] = &["ARCHITECTURE.md", "CONTRIBUTING.md"];

/// Paths under `crates/` that a guide names and that are not there.
fn check_paths(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for guide in GUIDES {
        let text = fs::read_to_string(root.join(guide)).unwrap_or_default();
        for path in paths_in(&text).filter(|path| !root.join(path).exists()) {
            problems.push(format!("{guide} names `{path}`, which does not exist"));
        }
    }
    problems
}

/// The paths under `crates/` in code spans; a path with a place to fill in, such as `<family>`, is that of its folder.
fn paths_in(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|span| span.starts_with("crates/") && !span.contains(' ')).map(|span| {
        let fixed = span.split('<').next().unwrap_or(span);
        if fixed.len() == span.len() { span } else { fixed.rsplit_once('/').map_or(fixed, |(folder, _)| folder) }
    })
}

/// The crates of this workspace under `[dependencies]`; those under `[dev-dependencies]` are free.
fn workspace_dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[").find(|s| s.starts_with("dependencies]") || s.starts_with("[dependencies]"));
    let lines = section.unwrap_or_default().lines();
    let name = |line: &str| {
        let (name, _) = line.split_once(['.', ' ', '='])?;
        if name == "regraft" { Some(name.to_owned()) } else { Some(name.strip_prefix("regraft-")?.to_owned()) }
    };
    lines.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_code_spans() {
        let text = "See `crates/ir/src/graph.rs`, `crates/ir/src/ops/<family>.rs` and `cargo run`, not crates/none.";
        assert_eq!(paths_in(text).collect::<Vec<_>>(), ["crates/ir/src/graph.rs", "crates/ir/src/ops"]);
    }

    /// `CONTRIBUTING.md` says that an op touches its file, the table of ops, what becomes of it in a narrowed program, a kernel
    /// in each backend that has one, and the handlers of importers that make it: `Lstm` is one that needs nothing else.
    #[test]
    fn an_op_is_known_in_the_places_that_the_guide_names() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
        let mut places = Vec::new();
        files_with(&crates, "Op::Lstm", &mut places);
        files_with(&crates, "Lstm,", &mut places);
        places.sort();
        places.dedup();
        let expected = |path: &String| {
            ["ir/src/ops/", "import/src/", "backend-", "compile/src/lower/narrow.rs"]
                .iter()
                .any(|place| path.starts_with(place))
        };
        let others: Vec<_> = places.iter().filter(|path| !expected(path)).collect();
        assert!(others.is_empty(), "an op is known elsewhere, too: {others:?}");
        assert!(places.iter().any(|path| path == "ir/src/ops/mod.rs"), "{places:?}");
    }

    /// The sources below `folder` that have `text`, relative to it.
    fn files_with(folder: &Path, text: &str, found: &mut Vec<String>) {
        let mut folders = vec![folder.to_path_buf()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).expect("a folder of sources").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs")
                    && path.components().any(|part| part.as_os_str() == "src")
                    && fs::read_to_string(&path).is_ok_and(|content| content.contains(text))
                {
                    let path = path.strip_prefix(folder).expect("a path below it");
                    found.push(path.to_string_lossy().into_owned());
                }
            }
        }
    }

    #[test]
    fn dependencies_are_read_from_their_section() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nregraft-ir = { workspace = true }\nserde.workspace = true\n\n[dev-dependencies]\nregraft-import = { workspace = true }\n";
        assert_eq!(workspace_dependencies(manifest), ["ir"]);
    }
}
