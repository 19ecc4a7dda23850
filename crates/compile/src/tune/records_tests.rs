use proptest::prelude::*;
use regraft_backend::Codegen as _;
use regraft_backend_cpu::{CpuCodegen, Isa};

use super::*;

fn target(level: &str) -> Target {
    let here = CpuCodegen::new(Isa::Portable).target();
    Target { arch: "x86_64".into(), level: level.into(), ..here }
}

fn none() -> Records {
    let machine = Machine { processor: "A Processor".into(), threads: 2 };
    Records { product: PRODUCT.into(), target: target("avx512"), machine, records: BTreeMap::new() }
}

fn record(mode: TuneMode, choice: &str, median_ns: u64) -> Record {
    let candidate = CandidateName(choice.into());
    let measured = vec![Measurement { candidate: candidate.clone(), median_ns, fastest_ns: 3, runs: 7 }];
    Record { mode, choice: candidate, measured }
}

fn some() -> Records {
    let mut records = none();
    records.insert("softmax f32[8] : f32[8]", record(TuneMode::Full, "a()", 10));
    records.insert("linear f32[8, 8] : f32[8, 8]", record(TuneMode::Fast, "b(1: panels_f32<n16>)", 20));
    records
}

#[test]
fn records_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.json");
    let records = some();
    records.save(&path).unwrap();
    assert_eq!(Records::open(&path).unwrap(), records);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, records.to_json());
    assert!(text.find("linear").unwrap() < text.find("softmax").unwrap(), "sorted: {text}");
    assert_eq!(Records::from_json(none().to_json().as_bytes()).unwrap(), none());
}

#[test]
fn the_digest_is_of_what_decides() {
    let records = some();
    let changed = |change: &dyn Fn(&mut Records)| {
        let mut other = records.clone();
        change(&mut other);
        other.digest()
    };
    let problem = "softmax f32[8] : f32[8]";
    let same = changed(&|r| {
        r.insert(problem, record(TuneMode::Fast, "a()", 99));
        r.machine.threads = 64;
    });
    assert_eq!(same, records.digest());
    let others = [
        changed(&|r| r.insert(problem, record(TuneMode::Full, "b()", 10))),
        changed(&|r| r.insert("other", record(TuneMode::Full, "a()", 10))),
        changed(&|r| r.target = target("avx2+fma")),
        none().digest(),
    ];
    assert!(others.iter().all(|digest| *digest != records.digest()));
}

#[test]
fn merging_keeps_what_was_measured_more_thoroughly() {
    let mut records = some();
    let mut other = none();
    other.insert("softmax f32[8] : f32[8]", record(TuneMode::Fast, "c()", 1));
    other.insert("linear f32[8, 8] : f32[8, 8]", record(TuneMode::Fast, "c()", 1));
    other.insert("conv", record(TuneMode::Off, "c()", 1));
    records.merge(&other).unwrap();
    let choices: Vec<&str> = records.iter().map(|(_, r)| r.choice.0.as_str()).collect();
    assert_eq!(choices, ["c()", "c()", "a()"]);
    other.target = target("portable");
    let refused = records.merge(&other).unwrap_err().to_string();
    assert!(refused.contains("for cpu x86_64 avx512, found some for cpu x86_64 portable"), "{refused}");
}

#[test]
fn what_is_wrong_is_said_where_it_is() {
    let text = some().to_json();
    let said = |json: &str| Records::from_json(json.as_bytes()).unwrap_err().to_string();
    let version = said(&text.replace("\"format\": 1", "\"format\": 2"));
    assert!(version.contains("format version 1, found version 2"), "{version}");
    let mode = said(&text.replace("\"full\"", "\"furious\""));
    assert!(mode.contains("at line ") && mode.contains("unknown variant `furious`"), "{mode}");
    let negative = said(&text.replace("\"median_ns\": 10", "\"median_ns\": -10"));
    assert!(negative.contains("-10"), "{negative}");
    let twice = said(&text.replace("softmax f32[8] : f32[8]", "linear f32[8, 8] : f32[8, 8]"));
    assert!(twice.contains("found two for linear f32[8, 8]"), "{twice}");
    for json in ["", "[]", "{}", "null", "{\"format\": 1}", &text[..text.len() / 2], &"[".repeat(100_000)] {
        assert!(said(json).contains("at line "), "{json}");
    }
    let large = Records::from_json(&vec![b' '; LIMIT as usize + 1]).unwrap_err().to_string();
    assert!(large.contains("at most 67108864 bytes"), "{large}");
    let missing = Records::open("no/such/file.json").unwrap_err().to_string();
    assert!(missing.starts_with("no/such/file.json: could not read"), "{missing}");
}

proptest! {
    #[test]
    fn damage_is_refused_or_harmless(at in 0usize..1000, byte: u8) {
        let mut json = some().to_json().into_bytes();
        let at = at % json.len();
        json[at] = byte;
        if let Ok(records) = Records::from_json(&json) {
            prop_assert_eq!(&Records::from_json(records.to_json().as_bytes()).unwrap(), &records);
        }
    }
}
