//! What each command takes, refuses and prints.

use std::{fs, process::Stdio};

use crate::support::{Array, Fixture, Sandbox, assert_close};

/// A folder with `a.rgf` of a fixture and its inputs as `input_N.npy`.
fn compiled(name: &str) -> (Fixture, Sandbox) {
    let (fixture, sandbox) = (Fixture::new(name), Sandbox::new());
    sandbox.compile(&fixture, "a.rgf", "refittable");
    for (i, input) in fixture.list("input").iter().enumerate() {
        sandbox.write(&format!("input_{i}.npy"), &input.npy());
    }
    (fixture, sandbox)
}

#[test]
fn compile_tells_what_it_did() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    let text = sandbox.compile(&fixture, "a.rgf", "refittable");
    let verbs: Vec<&str> = text.lines().map(|l| l.split_whitespace().next().unwrap()).collect();
    assert_eq!(verbs, ["imported", "lowered", "split", "built", "wrote"], "{text}");
    let facts = sandbox.json(&["compile", fixture.program.to_str().unwrap(), "-o", "b.rgf"]);
    assert_eq!(facts["mode"], "refittable");
    assert_eq!(facts["bytes"], fs::metadata(sandbox.path("b.rgf")).unwrap().len());
    assert_eq!(facts["inputs"][0]["dtype"], "f32");
    assert_eq!(fs::read(sandbox.path("a.rgf")).unwrap(), fs::read(sandbox.path("b.rgf")).unwrap());
}

#[test]
fn compile_dumps_stages() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let program = fixture.program.to_str().unwrap();
    for stage in ["imported", "canonicalize", "lower", "plan"] {
        let text = sandbox.ok(&["compile", program, "--dump", stage]);
        assert!(text.contains("program ") && text.contains("linear"), "{text}");
    }
    let text = sandbox.ok(&["compile", program, "--dump", "recipes"]);
    assert!(text.starts_with("recipe @"), "{text}");
    assert!(sandbox.files().is_empty(), "nothing was asked to be written");
    sandbox.ok(&["compile", program, "--dump-dir", "stages", "-o", "a.rgf"]);
    let names: Vec<_> = fs::read_dir(sandbox.path("stages")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().any(|n| n == "00-imported.txt") && names.len() > 5, "{names:?}");
    let error = sandbox.fails(&["compile", program, "--dump", "nonsense"], 2);
    assert!(error.contains("help: one of imported, "), "{error}");
}

#[test]
fn run_takes_inputs_in_order_and_by_name() {
    let (fixture, sandbox) = compiled("tiny_bert");
    sandbox.ok(&["run", "a.rgf", "--input", "input_0.npy", "--input", "input_1.npy", "--output-dir", "out"]);
    let facts = sandbox.json(&["inspect", "a.rgf"]);
    let name = |i: usize| facts["inputs"][i]["name"].as_str().unwrap().to_owned();
    let (zero, one) = (format!("{}=input_0.npy", name(0)), format!("{}=input_1.npy", name(1)));
    let facts = sandbox.json(&["run", "a.rgf", "-i", &one, "-i", &zero, "-o", "named"]);
    sandbox.ok(&["run", "a.rgf", "-i", &one, "-i", "input_0.npy", "-o", "mixed"]);
    assert_eq!(facts["outputs"][0]["shape"], serde_json::json!([3, 7, 16]));
    let outputs = |folder: &str| -> Vec<Vec<u8>> {
        (0..2).map(|i| fs::read(sandbox.path(folder).join(format!("output_{i}.npy"))).unwrap()).collect()
    };
    assert_close(&outputs("out"), &fixture.list("expected"));
    assert_eq!(outputs("named"), outputs("out"));
    assert_eq!(outputs("mixed"), outputs("out"));
    let before = outputs("out");
    sandbox.ok(&["run", "a.rgf", "-i", &one, "-i", &zero, "-o", "out", "--threads", "1"]);
    assert_eq!(outputs("out"), before, "threads do not change results, and outputs are replaced");
}

#[test]
fn run_refuses_what_does_not_fit_and_writes_nothing() {
    let (_, sandbox) = compiled("conv_bn");
    sandbox.write("rank.npy", &Array::f32(&[2], &[0.0; 2]).npy());
    sandbox.write("size.npy", &Array::f32(&[9, 4, 7, 6], &[0.0; 9 * 4 * 7 * 6]).npy());
    let ints = Array { dtype: safetensors::Dtype::I64, shape: vec![2, 4, 7, 6], data: vec![0; 8 * 336] };
    sandbox.write("dtype.npy", &ints.npy());
    sandbox.write("short.npy", &Array::f32(&[2, 4, 7, 6], &[0.0; 3]).npy());
    sandbox.write("text.npy", b"not an array");
    for (input, part) in [
        ("rank.npy", "expected f32[s0, 4, 7, 6], found f32[2] in rank.npy"),
        ("size.npy", "in 1..=8"),
        ("dtype.npy", "found i64[2, 4, 7, 6]"),
        ("short.npy", "short.npy: the file is cut short"),
        ("text.npy", "text.npy: no valid .npy file"),
        ("absent.npy", "absent.npy: "),
        ("wrong=input_0.npy", "the program has no input `wrong`"),
    ] {
        let error = sandbox.fails(&["run", "a.rgf", "--input", input, "--output-dir", "out"], 1);
        assert!(error.contains(part), "`{part}` is not in {error}");
        assert!(!sandbox.path("out").exists(), "{input}");
    }
    let error = sandbox.fails(&["run", "a.rgf", "--output-dir", "out"], 1);
    assert!(error.contains("takes 1 input, found 0") && error.contains("f32[s0, 4, 7, 6]"), "{error}");
    let error = sandbox.fails(&["run", "a.rgf", "-i", "input_0.npy", "-i", "input_0.npy", "-o", "out"], 1);
    assert!(error.contains("takes 1 input, found 2"), "{error}");
    let error = sandbox.fails(&["run", "a.rgf", "-i", "input_0.npy", "-o", "no/such/folder"], 1);
    assert!(error.contains("no/such/folder") && error.contains("help: create its parent first"), "{error}");
}

#[test]
fn run_writes_all_outputs_or_none() {
    let (_, sandbox) = compiled("tiny_bert");
    fs::create_dir_all(sandbox.path("out/output_1.npy")).unwrap();
    let args = ["run", "a.rgf", "-i", "input_0.npy", "-i", "input_1.npy", "-o", "out"];
    let error = sandbox.fails(&args, 1);
    assert!(error.contains("output_1.npy"), "{error}");
    let left: Vec<_> = fs::read_dir(sandbox.path("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["output_1.npy"]);
}

#[test]
fn inspect_works_on_engines_without_weights() {
    let (fixture, sandbox) = compiled("conv_bn");
    sandbox.compile(&fixture, "stripped.rgf", "stripped");
    sandbox.compile(&fixture, "frozen.rgf", "frozen");
    for engine in ["a.rgf", "stripped.rgf", "frozen.rgf"] {
        let text = sandbox.ok(&["inspect", engine, "--kernels", "--sources", "--slots", "--plan"]);
        for part in ["target", "s0 in 1..=8", "f32[s0, 4, 7, 6]", "conv.weight", "kernel", "program "] {
            assert!(text.contains(part), "`{part}` is not in {text}");
        }
        let facts = sandbox.json(&["inspect", engine, "--kernels", "--sources", "--slots", "--plan"]);
        let length = |key: &str| facts[key].as_array().unwrap().len();
        assert_eq!(length("kernels"), facts["nodes"].as_u64().unwrap() as usize);
        assert_eq!(length("slot_list"), facts["slots"].as_u64().unwrap() as usize);
        assert_eq!(length("source_list"), facts["sources"].as_u64().unwrap() as usize);
        assert_eq!(facts["dims"][0]["max"], 8);
    }
}

#[test]
fn bench_measures_latency_refit_and_copy() {
    let (fixture, sandbox) = compiled("tiny_bert");
    sandbox.compile(&fixture, "frozen.rgf", "frozen");
    let facts = sandbox.json(&["bench", "a.rgf", "--runs", "4", "--against", "frozen.rgf"]);
    assert_eq!(facts["latency_ms"]["runs"], 4);
    let mean = facts["latency_ms"]["mean"].as_f64().unwrap();
    assert!(mean >= facts["latency_ms"]["best"].as_f64().unwrap(), "{facts}");
    assert!(facts["against"]["ratio_of_medians"].as_f64().unwrap() > 0.0);
    let refit = &facts["refit"];
    assert!(refit["copy_ms"]["median"].as_f64().unwrap() > 0.0 && refit["ratio_of_medians"].as_f64().unwrap() > 0.0);
    let total: u64 = facts["refit"]["slots"].as_u64().unwrap() + refit["shared_slots"].as_u64().unwrap();
    assert_eq!(total, sandbox.json(&["inspect", "a.rgf"])["slots"].as_u64().unwrap());
    let text = sandbox.ok(&["bench", "a.rgf", "--runs", "2", "--dims", "s0=1"]);
    assert!(text.contains("latency") && text.contains(", mean ") && text.contains("× the copy"), "{text}");
    let text = sandbox.ok(&["bench", "frozen.rgf", "--runs", "2"]);
    assert!(text.contains("the engine is frozen"), "{text}");
    let error = sandbox.fails(&["bench", "a.rgf", "--dims", "s9=1"], 2);
    assert!(error.contains("no such dim") && error.contains("s0"), "{error}");
}

#[test]
fn profile_shows_what_each_node_takes() {
    let (fixture, sandbox) = compiled("tiny_bert");
    let facts = sandbox.json(&["profile", "a.rgf", "--runs", "2", "--trace", "trace.json"]);
    let nodes = facts["nodes"].as_array().unwrap();
    let linear = nodes.iter().find(|node| node["op"] == "linear").expect("a linear layer");
    assert!(linear["flops"].as_u64().unwrap() > 0 && linear["bytes"].as_u64().unwrap() > 0, "{linear}");
    assert!(linear["ms"].as_f64().unwrap() > 0.0 && linear["least_ms"].as_f64().unwrap() > 0.0, "{linear}");
    assert!(linear["module"].as_str().unwrap().contains('.') && linear["kernel"] != "reference", "{linear}");
    assert!(facts["roof"]["gflops"]["f32"].as_f64().unwrap() > 0.0, "{}", facts["roof"]);
    let trace: serde_json::Value = serde_json::from_slice(&fs::read(sandbox.path("trace.json")).unwrap()).unwrap();
    assert_eq!(trace["traceEvents"].as_array().unwrap().len(), nodes.len());
    let text = sandbox.ok(&["profile", "a.rgf", "--runs", "1", "--top", "3"]);
    assert!(text.contains("of roof") && text.contains("GFLOP/s"), "{text}");
    sandbox.compile(&fixture, "stripped.rgf", "stripped");
    assert!(sandbox.fails(&["profile", "stripped.rgf"], 1).contains("no weights yet"));
}

#[test]
fn damaged_and_foreign_files_are_refused_by_name() {
    let (fixture, sandbox) = compiled("linear");
    let good = fs::read(sandbox.path("a.rgf")).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    sandbox.write("cut.rgf", &good[..good.len() - 7]);
    sandbox.write("flipped.rgf", &flipped);
    sandbox.write("text.rgf", b"hello");
    sandbox.write("empty.rgf", b"");
    sandbox.weights("b.safetensors", &fixture.b());
    for engine in ["cut.rgf", "flipped.rgf", "text.rgf", "empty.rgf", "absent.rgf", "b.safetensors"] {
        for args in [
            &["inspect", engine][..],
            &["run", engine, "--input", "input_0.npy", "--output-dir", "out"],
            &["refit", engine, "--weights", "b.safetensors", "-o", "x.rgf"],
        ] {
            let error = sandbox.fails(args, 1);
            assert!(error.starts_with(&format!("error: {engine}: ")), "{error}");
            assert!(!error.contains(&format!("{engine}: {engine}")), "{error}");
        }
    }
    for weights in ["a.rgf", "absent.safetensors", "text.rgf"] {
        let error = sandbox.fails(&["refit", "a.rgf", "--weights", weights, "-o", "x.rgf"], 1);
        assert!(error.starts_with(&format!("error: {weights}: ")), "{error}");
    }
    for program in ["a.rgf", "absent.pt2", "text.rgf"] {
        let error = sandbox.fails(&["compile", program, "-o", "x.rgf"], 1);
        assert!(error.starts_with(&format!("error: {program}: ")), "{error}");
    }
    assert!(!sandbox.path("x.rgf").exists() && !sandbox.path("out").exists());
}

#[test]
fn a_directory_that_does_not_exist_is_refused_before_any_work() {
    let (fixture, sandbox) = compiled("linear");
    sandbox.weights("b.safetensors", &fixture.b());
    let program = fixture.program.to_str().unwrap();
    let before = sandbox.files();
    for args in [
        &["compile", program, "-o", "no/such/a.rgf"][..],
        &["refit", "a.rgf", "--weights", "b.safetensors", "-o", "no/such/a.rgf"],
        &["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf", "--report", "no/such/report.json"],
    ] {
        let error = sandbox.fails(args, 1);
        assert!(error.contains("no/such/") && error.contains("help: create its directory first"), "{error}");
    }
    assert_eq!(sandbox.files(), before);
}

#[test]
fn usage_errors_and_help_have_their_exit_codes() {
    let sandbox = Sandbox::new();
    for args in
        [&["compile"][..], &["frobnicate"], &["bench", "a.rgf", "--runs", "0"], &["bench", "a.rgf", "--dims", "s0"]]
    {
        assert_eq!(sandbox.call(args).status.code(), Some(2), "{args:?}");
    }
    for command in ["compile", "run", "refit", "bind", "inspect", "bench", "profile", "doctor", "completions"] {
        let text = sandbox.ok(&[command, "--help"]);
        assert!(text.contains(&format!("\n  regraft {command} ")), "the help of {command} shows examples");
    }
    assert!(sandbox.ok(&["--version"]).starts_with("regraft "));
}

#[test]
fn the_doctor_says_what_the_machine_has_and_what_is_missing() {
    let sandbox = Sandbox::new();
    let text = sandbox.ok(&["doctor"]);
    let facts = sandbox.json(&["doctor"]);
    assert!(text.contains(facts["cpu"]["target"].as_str().unwrap()), "{text}");
    assert_eq!(facts["libraries"].as_array().unwrap().len(), 4);
    for library in facts["libraries"].as_array().unwrap() {
        let (name, cost) = (library["name"].as_str().unwrap(), library["without_it"].as_str().unwrap());
        match library["problem"].as_str() {
            None => assert!(text.contains(library["path"].as_str().unwrap()), "{text}"),
            Some(problem) => {
                assert!(problem.contains(library["needed"].as_str().unwrap()), "{problem}");
                assert!(text.contains(name) && text.contains(cost), "{text}");
            }
        }
    }
}

#[test]
fn completions_are_there_for_every_shell() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(sandbox.ok(&["completions", shell]).contains("regraft"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (_, sandbox) = compiled("tiny_bert");
    let mut child = sandbox
        .command()
        .args(["inspect", "a.rgf", "--kernels", "--plan"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn compile_says_what_no_kernel_runs_and_what_weights_of_integers_cost() {
    let (fixture, sandbox) = compiled("mlp_gelu");
    let program = fixture.program.to_str().unwrap();
    let facts = sandbox.json(&["compile", program, "-o", "b.rgf", "--weights", "int8"]);
    assert_eq!(facts["evaluated"].as_array().unwrap().len(), 0);
    assert!(facts["loss"].as_f64().unwrap() > 0.0 && facts["loss"].as_f64().unwrap() < 0.1, "{facts}");
    let text = sandbox.ok(&["compile", program, "-o", "c.rgf", "--weights", "int8", "--sample", "input_0.npy"]);
    assert!(text.contains("of the outputs on the sample"), "{text}");
    let error = sandbox.fails(&["compile", program, "-o", "d.rgf", "--weights", "int2"], 2);
    assert!(error.contains("int8, int4"), "{error}");
}
