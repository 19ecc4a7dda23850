//! The engine cache as the command uses it, and the engines that travel without weights.

use std::{fs, process::Stdio, thread, time::Duration};

use serde_json::Value;

use crate::support::{Array, Fixture, Sandbox, assert_close};

fn compile(sandbox: &Sandbox, name: &str, more: &[&str]) -> Value {
    let program = Fixture::new(name).program;
    sandbox.json(&[&["compile", program.to_str().unwrap(), "-o", "engine.rgf"], more].concat())
}

fn keys(sandbox: &Sandbox) -> Vec<String> {
    let entries = sandbox.json(&["cache", "ls"])["entries"].clone();
    entries.as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn c_1_compiling_again_is_a_hit_whatever_the_settings_of_the_file() {
    let sandbox = Sandbox::new();
    let first = compile(&sandbox, "linear", &["--threads", "1", "--mode", "refittable"]);
    assert_eq!(first["cache"], "stored");
    let again = compile(&sandbox, "linear", &["--mode", "stripped", "--threads", "1"]);
    assert_eq!((&again["cache"], &again["cache_key"]), (&Value::from("hit"), &first["cache_key"]));
    assert_eq!(compile(&sandbox, "linear", &["--no-cache"])["cache"], "off");
    assert_eq!(compile(&sandbox, "linear", &["--dump-dir", "stages"])["cache"], "off");
    let text = sandbox.ok(&["compile", Fixture::new("linear").program.to_str().unwrap(), "-o", "x.rgf"]);
    assert!(text.contains("cached") && text.contains("the engine was in the cache"), "{text}");
}

#[test]
fn c_3_a_cached_engine_runs_and_refits_like_a_built_one() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    sandbox.weights("b.safetensors", &fixture.b());
    for _ in 0..2 {
        compile(&sandbox, "conv_bn", &[]);
        sandbox.ok(&["refit", "engine.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
        assert_close(&sandbox.run("b.rgf", &fixture.list("input")), &fixture.list("expected_b"));
    }
    let cached = fs::read(sandbox.path("engine.rgf")).unwrap();
    compile(&sandbox, "conv_bn", &["--no-cache"]);
    assert!(cached == fs::read(sandbox.path("engine.rgf")).unwrap());
}

#[test]
fn c_4_processes_share_one_order_of_use() {
    let sandbox = Sandbox::new();
    let key = |name: &str| compile(&sandbox, name, &[])["cache_key"].as_str().unwrap().to_owned();
    let (a, b, c) = (key("linear"), key("embedding"), key("mlp_gelu"));
    assert_eq!(key("linear"), a, "a use of the first");
    assert_eq!(keys(&sandbox), [a.clone(), c.clone(), b.clone()]);
    let bytes = sandbox.json(&["cache", "info"])["bytes"].as_u64().unwrap();
    let removed = sandbox.json(&["cache", "gc", "--limit", &format!("{}B", bytes - 1)]);
    assert_eq!(removed["removed"], Value::from(vec![b.clone()]));
    assert_eq!(keys(&sandbox), [a, c]);
    // A limit that holds one engine alone, kept by the compilation itself.
    let program = Fixture::new("embedding").program;
    let output = sandbox
        .command()
        .env("REGRAFT_CACHE_LIMIT", "12kB")
        .args(["compile", program.to_str().unwrap(), "-o", "x.rgf", "--json"])
        .output()
        .unwrap();
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["cache"], "stored", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(keys(&sandbox).contains(&b));
    assert!(sandbox.json(&["cache", "info"])["bytes"].as_u64().unwrap() <= 12_000);
}

#[test]
fn c_5_two_processes_that_build_one_engine_build_it_once() {
    let sandbox = Sandbox::new();
    let program = Fixture::new("attention_block").program;
    for round in 0..8 {
        sandbox.ok(&["cache", "clear"]);
        let started: Vec<_> = (0..4)
            .map(|i| {
                let output = format!("{round}-{i}.rgf");
                let args = ["compile", program.to_str().unwrap(), "-o", &output, "--json"];
                sandbox.command().args(args).stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let facts = started.into_iter().map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            serde_json::from_slice::<Value>(&output.stdout).unwrap()["cache"].as_str().unwrap().to_owned()
        });
        let mut facts: Vec<String> = facts.collect();
        facts.sort();
        assert_eq!(facts, ["hit", "hit", "hit", "stored"], "round {round}");
        let whole = fs::read(sandbox.path(&format!("{round}-0.rgf"))).unwrap();
        assert!((1..4).all(|i| whole == fs::read(sandbox.path(&format!("{round}-{i}.rgf"))).unwrap()));
        assert_eq!(keys(&sandbox).len(), 1);
    }
}

#[test]
fn c_5_a_killed_compilation_leaves_a_cache_that_works() {
    let sandbox = Sandbox::new();
    let program = Fixture::new("attention_block").program;
    for round in 0..20u64 {
        let args = ["compile", program.to_str().unwrap(), "-o", "killed.rgf"];
        let mut child = sandbox.command().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_micros(2_000 + round * 1_500));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = sandbox.json(&["cache", "verify"]);
        assert_eq!(found["removed"], Value::Array(Vec::new()), "round {round}");
        if round % 4 == 3 {
            sandbox.ok(&["cache", "clear"]);
        }
    }
    assert!(["hit", "stored"].contains(&compile(&sandbox, "attention_block", &[])["cache"].as_str().unwrap()));
}

#[test]
fn c_6_a_damaged_entry_is_a_miss_with_a_note_and_verify_removes_it() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let damage = |sandbox: &Sandbox| {
        let entry = sandbox.json(&["cache", "ls"])["entries"][0]["file"].as_str().unwrap().to_owned();
        let mut bytes = fs::read(&entry).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&entry, bytes).unwrap();
    };
    compile(&sandbox, "linear", &[]);
    damage(&sandbox);
    let output = sandbox.call(&["compile", fixture.program.to_str().unwrap(), "-o", "engine.rgf"]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("built"), "{stdout}");
    assert!(stderr.starts_with("note: cache entry ") && stderr.contains("the file is damaged"), "{stderr}");
    assert_close(&sandbox.run("engine.rgf", &fixture.list("input")), &fixture.list("expected"));
    damage(&sandbox);
    assert!(sandbox.ok(&["cache", "ls"]).contains("cannot be read"));
    assert_eq!(sandbox.json(&["cache", "verify"])["removed"].as_array().unwrap().len(), 1);
    assert!(keys(&sandbox).is_empty());
    assert!(sandbox.ok(&["cache", "ls"]).contains("empty"));
}

#[test]
fn a_cache_that_cannot_be_written_is_a_note() {
    let sandbox = Sandbox::new();
    sandbox.write("file", b"");
    let program = Fixture::new("linear").program;
    let args = ["compile", program.to_str().unwrap(), "-o", "engine.rgf", "--cache-dir", "file/cache"];
    let output = sandbox.call(&args);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("note: engine cache: file/cache"));
    let error = sandbox.fails(&["cache", "info", "--cache-dir", "file/cache"], 1);
    assert!(error.contains("file/cache") && error.contains("help: "), "{error}");
}

#[test]
fn sizes_that_are_none_are_refused() {
    let sandbox = Sandbox::new();
    assert!(sandbox.fails_usage(&["cache", "gc", "--limit", "much"]).contains("expected a size such as 200MB"));
    let output = sandbox.command().env("REGRAFT_CACHE_LIMIT", "much").args(["cache", "info"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("REGRAFT_CACHE_LIMIT=much: expected a size"));
}

#[test]
fn s_2_a_stripped_engine_and_a_file_that_check_approves_are_enough() {
    let (fixture, sandbox, elsewhere) = (Fixture::new("conv_bn"), Sandbox::new(), Sandbox::new());
    compile(&sandbox, "conv_bn", &[]);
    sandbox.ok(&["strip", "engine.rgf", "-o", "plan.rgf"]);
    elsewhere.write("plan.rgf", &fs::read(sandbox.path("plan.rgf")).unwrap());
    elsewhere.weights("b.safetensors", &fixture.b());
    assert!(elsewhere.ok(&["check", "plan.rgf", "b.safetensors"]).contains("fits"));
    elsewhere.ok(&["bind", "plan.rgf", "--weights", "b.safetensors", "-o", "bound.rgf"]);
    assert_close(&elsewhere.run("bound.rgf", &fixture.list("input")), &fixture.list("expected_b"));
    let error = elsewhere.fails(&["strip", "plan.rgf", "-o", "x.rgf"], 1);
    assert!(error.contains("stripped already"), "{error}");
}

#[test]
fn check_lists_every_mismatch() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    compile(&sandbox, "conv_bn", &[]);
    let mut wrong = fixture.b();
    wrong.remove("bn.weight");
    wrong.insert("bn.wieght".into(), Array::f32(&[6], &[1.0; 6]));
    wrong.insert("bn.bias".into(), Array::f32(&[7], &[1.0; 7]));
    sandbox.weights("wrong.safetensors", &wrong);
    let error = sandbox.fails(&["check", "engine.rgf", "wrong.safetensors"], 1);
    for line in ["missing in wrong.safetensors", "did you mean bn.weight?", "expected f32[6], found f32[7]"] {
        assert!(error.contains(line), "{error}");
    }
    assert!(error.starts_with("error: 2 of 6 sources do not fit, 1 name is unknown\n"), "{error}");
}

#[test]
fn check_same_compares_contents() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    compile(&sandbox, "linear", &[]);
    sandbox.weights("b.safetensors", &fixture.b());
    assert_eq!(sandbox.json(&["check", "engine.rgf", "b.safetensors"])["contents_compared"], false);
    let error = sandbox.fails(&["check", "engine.rgf", "b.safetensors", "--same"], 1);
    assert!(error.contains("differs from the weights that the engine was built with"), "{error}");
    let facts = sandbox.json(&["check", "engine.rgf", fixture.program.to_str().unwrap(), "--same"]);
    assert_eq!((&facts["fits"], &facts["contents_compared"]), (&true.into(), &true.into()));
    let manifest = sandbox.json(&["inspect", "engine.rgf", "--manifest"])["manifest"].clone();
    assert!(manifest.as_array().unwrap().iter().all(|source| source["digest"].as_str().unwrap().len() == 64));
}

#[test]
fn s_3_strip_identical_binds_to_the_weights_that_were_taken_out() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    compile(&sandbox, "linear", &[]);
    sandbox.ok(&["strip", "engine.rgf", "-o", "plan.rgf", "--identical"]);
    sandbox.weights("b.safetensors", &fixture.b());
    let error = sandbox.fails(&["bind", "plan.rgf", "--weights", "b.safetensors", "-o", "x.rgf"], 1);
    assert!(error.contains("differs from the weights that the engine was built with"), "{error}");
    sandbox.ok(&["bind", "plan.rgf", "--weights", fixture.program.to_str().unwrap(), "-o", "bound.rgf"]);
    assert_close(&sandbox.run("bound.rgf", &fixture.list("input")), &fixture.list("expected"));
}

#[test]
fn a_refit_keeps_sources_as_the_engine_did() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    sandbox.weights("b.safetensors", &fixture.b());
    for keep in ["embedded", "prepacked", "reference", "none"] {
        compile(&sandbox, "conv_bn", &["--keep-sources", keep]);
        assert_eq!(sandbox.json(&["inspect", "engine.rgf"])["keep_sources"], keep);
        sandbox.ok(&["refit", "engine.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
        assert_eq!(sandbox.json(&["inspect", "b.rgf"])["keep_sources"], keep);
        assert_close(&sandbox.run("b.rgf", &fixture.list("input")), &fixture.list("expected_b"));
    }
    let frozen = ["compile", fixture.program.to_str().unwrap(), "-o", "x.rgf", "--mode", "frozen"];
    let error = sandbox.fails(&[&frozen[..], &["--keep-sources", "none"]].concat(), 2);
    assert!(error.contains("--keep-sources is about refittable engines"), "{error}");
}
