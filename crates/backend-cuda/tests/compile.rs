//! Every source compiles for every architecture that is supported, with NVRTC and without a GPU.

mod common;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use regraft_backend_cuda::{
    kernels::pack,
    library::Lookup,
    nvrtc::{Compiler, Source},
};

/// Libraries beside the Python of the tests, if that environment was made.
fn lookup() -> Lookup {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/python-env.sh");
    let lookup = Lookup::from_environment();
    // Only asks for an environment that is there: making one takes minutes, which is not this test's matter.
    let cache = std::env::var_os("REGRAFT_CACHE_DIR").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/regraft"),
        PathBuf::from,
    );
    if !script.exists() || !cache.join("").exists() {
        return lookup;
    }
    let made = std::fs::read_dir(&cache).into_iter().flatten().flatten();
    made.filter(|e| e.path().join(".complete").exists()).fold(lookup, |l, e| l.with_environment(&e.path()))
}

/// One of each source; shapes differ in what they define, types too.
fn sources() -> Vec<Source> {
    let mut seen = HashSet::new();
    let specs = common::cases(7, true).into_iter().flat_map(|case| case.specs()).map(|spec| spec.source);
    specs.chain([pack::source()]).filter(|source| seen.insert(source.clone())).collect()
}

#[test]
fn all_sources_compile_for_all_architectures() {
    let compiler = match Compiler::open(&lookup()) {
        Ok(compiler) => compiler,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    // What differs in types and sizes alone: some stand for the others.
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut stands = |source: &Source| {
        let count = counts.entry(source.name.clone()).or_default();
        *count += 1;
        (*count - 1).is_multiple_of(if source.name == "elementwise" { 40 } else { 7 })
    };
    let sources: Vec<Source> = sources().into_iter().filter(|source| stands(source)).collect();
    for arch in ["sm_80", "sm_90", "sm_120"] {
        for source in &sources {
            let cubin = compiler.compile(source, arch).unwrap_or_else(|e| panic!("{}: {e}", source.name));
            assert!(cubin.starts_with(b"\x7fELF"), "{}", source.name);
        }
    }
    println!("{} sources for 3 architectures with NVRTC {}", sources.len(), compiler.version());
}
