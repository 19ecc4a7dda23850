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

/// Some of the sources of a kernel stand for all that differ from them in types and sizes alone; `REGRAFT_ALL_SOURCES` compiles
/// every one.
fn stand_ins() -> Vec<Source> {
    let all = sources();
    if std::env::var_os("REGRAFT_ALL_SOURCES").is_some() {
        return all;
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    all.iter().for_each(|source| *counts.entry(source.name.clone()).or_default() += 1);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut stands = |source: &Source| {
        let most = if source.name == "elementwise" { 24 } else { 3 };
        let place = seen.entry(source.name.clone()).or_default();
        *place += 1;
        (*place - 1).is_multiple_of(counts[&source.name].div_ceil(most))
    };
    all.into_iter().filter(|source| stands(source)).collect()
}

fn all_compile_for(arch: &str) {
    let compiler = match Compiler::open(&lookup()) {
        Ok(compiler) => compiler,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let sources = stand_ins();
    for source in &sources {
        let cubin = compiler.compile(source, arch).unwrap_or_else(|e| panic!("{}: {e}", source.name));
        assert!(cubin.starts_with(b"\x7fELF"), "{}", source.name);
    }
    println!("{} sources for {arch} with NVRTC {}", sources.len(), compiler.version());
}

/// Kernels are launched while those before still run.
#[test]
fn every_kernel_waits_for_those_before() {
    for source in sources() {
        let kernels = source.text.split("__global__").skip(1);
        for kernel in kernels {
            assert!(kernel.contains("AWAIT();"), "{}: {}", source.name, kernel.lines().next().unwrap_or_default());
        }
    }
}

#[test]
fn all_sources_compile_for_sm_80() {
    all_compile_for("sm_80");
}

#[test]
fn all_sources_compile_for_sm_90() {
    all_compile_for("sm_90");
}

#[test]
fn all_sources_compile_for_sm_120() {
    all_compile_for("sm_120");
}
