//! `compile --tune`: what is measured, kept and pinned.

use std::fs;

use crate::support::{Fixture, Sandbox};

/// The line that begins with `verb`.
fn line<'a>(text: &'a str, verb: &str) -> &'a str {
    text.lines().find(|l| l.split_whitespace().next() == Some(verb)).unwrap_or_else(|| panic!("no {verb}: {text}"))
}

#[test]
fn what_was_measured_is_not_measured_again() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let program = fixture.program.to_str().unwrap();
    let first = sandbox.ok(&["compile", program, "-o", "a.rgf", "--tune", "fast"]);
    assert!(line(&first, "tuned").contains("1 problem measured, 0 from the cache, "), "{first}");
    // Without the engine, what was measured is still known.
    sandbox.ok(&["cache", "clear"]);
    let second = sandbox.ok(&["compile", program, "-o", "b.rgf", "--tune", "fast"]);
    assert!(line(&second, "tuned").contains("0 problems measured, 1 from the cache, "), "{second}");
    assert_eq!(fs::read(sandbox.path("a.rgf")).unwrap(), fs::read(sandbox.path("b.rgf")).unwrap());
    let facts = sandbox.json(&["compile", program, "-o", "c.rgf", "--tune", "full"]);
    let tuning = &facts["tuning"];
    assert_eq!((&tuning["mode"], &tuning["measured"], &tuning["reused"]), (&"full".into(), &1.into(), &0.into()));
    assert!(tuning["seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_damaged_cache_is_a_note() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let args = ["compile", fixture.program.to_str().unwrap(), "-o", "a.rgf", "--tune", "fast"];
    sandbox.ok(&args);
    let files = fs::read_dir(sandbox.cache.path().join("tuning")).unwrap().map(|e| e.unwrap().path());
    let records: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    assert_eq!(records.len(), 1, "{records:?}");
    fs::write(&records[0], "nonsense").unwrap();
    sandbox.ok(&["cache", "clear"]);
    let output = sandbox.command().args(args).output().unwrap();
    assert!(output.status.success());
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(line(&text, "tuned").contains("1 problem measured"), "{text}");
    assert!(notes.contains("note: ") && notes.contains("expected tuning records"), "{notes}");
}

#[test]
fn pinned_records_give_the_same_engine() {
    let (fixture, sandbox) = (Fixture::new("tiny_bert"), Sandbox::new());
    let program = fixture.program.to_str().unwrap();
    let text = sandbox.ok(&["compile", program, "-o", "a.rgf", "--tune", "fast", "--save-tune-records", "tuned.json"]);
    assert!(line(&text, "saved").contains("tuned.json, "), "{text}");
    let args = ["compile", program, "-o", "b.rgf", "--tune-records", "tuned.json", "--save-tune-records", "again.json"];
    let text = sandbox.ok(&args);
    assert!(line(&text, "tuned").ends_with(" problems pinned"), "{text}");
    assert_eq!(fs::read(sandbox.path("a.rgf")).unwrap(), fs::read(sandbox.path("b.rgf")).unwrap());
    assert_eq!(fs::read(sandbox.path("tuned.json")).unwrap(), fs::read(sandbox.path("again.json")).unwrap());
    let missing = sandbox.ok(&[
        "compile",
        Fixture::new("linear").program.to_str().unwrap(),
        "-o",
        "c.rgf",
        "--tune-records",
        "tuned.json",
    ]);
    assert!(line(&missing, "tuned").ends_with("0 problems pinned, 1 not in the records"), "{missing}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let compile = |rest: &[&str], code| {
        let args = [&["compile", fixture.program.to_str().unwrap(), "-o", "a.rgf"], rest].concat();
        sandbox.fails(&args, code)
    };
    let both = compile(&["--tune", "fast", "--tune-records", "tuned.json"], 2);
    assert!(both.contains("cannot be used with"), "{both}");
    let missing = compile(&["--tune-records", "tuned.json"], 1);
    assert!(missing.contains("tuned.json: could not read the tuning records"), "{missing}");
    fs::write(sandbox.path("tuned.json"), "{\"format\": 99}").unwrap();
    let version = compile(&["--tune-records", "tuned.json"], 1);
    assert!(version.contains("tuned.json: expected tuning records of format version 1, found version 99"), "{version}");
    let nowhere = compile(&["--save-tune-records", "no/such/folder.json"], 1);
    assert!(nowhere.contains("no/such/folder.json"), "{nowhere}");
    assert_eq!(sandbox.files(), ["tuned.json"]);
}
