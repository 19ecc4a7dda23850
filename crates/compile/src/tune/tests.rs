use regraft_backend_cpu::{CpuDevice, Isa};
use regraft_engine::Engine;
use regraft_ir::text;

use super::*;
use crate::{
    CompileError,
    pipeline::{Backend, Observer, Options, Output, compile},
};

const PROGRAM: &str = r#"program "two" {
  dims   s0 in 1..=64 (opt 9)
  input  %0 : f32[s0, 24] = "x"
  source %1 : f32[40, 24] = "first" (parameter)
  source %2 : f32[40, 40] = "second" (parameter)
  source %3 : f32[40, 40] = "third" (parameter)
  %4 = linear %0, %1, none, none : f32[s0, 40]
  %5 = linear %4, %2, none, none : f32[s0, 40]
  %6 = linear %5, %3, none, none : f32[s0, 40]
  output %6 = "y"
}"#;

fn backend() -> CpuDevice {
    CpuDevice::new(Some(2))
}

fn build(tuning: Tuning<'_>) -> Result<Output, CompileError> {
    let options = Options { tuning, ..Options::default() };
    compile(
        text::parse(PROGRAM).unwrap(),
        &[None, None, None],
        Backend::of(&backend()),
        options,
        &mut crate::pipeline::Unobserved,
    )
}

fn pinned(records: &Records) -> Result<Output, CompileError> {
    build(Tuning { pinned: Some(records), mode: TuneMode::Full, ..Tuning::default() })
}

/// All that a build decides.
fn decided(engine: &Engine) -> String {
    let recipes: Vec<String> = engine.refit_map.recipes.iter().map(ToString::to_string).collect();
    let plan = &engine.plan;
    format!("{}\n{:?}\n{:?}\n{}", text::print(&plan.graph), plan.kernels, plan.slots, recipes.join("\n"))
}

#[test]
fn problems_are_named_by_what_they_compute() {
    let output = build(Tuning::default()).unwrap();
    assert_eq!(output.tune_report, TuneReport::default());
    let problems: Vec<&str> = output.records.iter().map(|(problem, _)| problem).collect();
    let expected = [
        "linear f32[9, 24], known f32[40, 24], none, none : f32[9, 40]",
        "linear f32[9, 40], known f32[40, 40], none, none : f32[9, 40]",
    ];
    assert_eq!(problems, expected);
}

/// What was told before each measurement.
#[derive(Default)]
struct Told(Vec<(usize, usize, f64)>);

impl Observer for Told {
    fn measuring(&mut self, number: usize, count: usize, seconds: f64) {
        self.0.push((number, count, seconds));
    }
}

#[test]
fn measurements_are_counted_ahead() {
    let told = |known: Option<&Records>| {
        let mut told = Told::default();
        let options = Options { tuning: Tuning { mode: TuneMode::Fast, known, pinned: None }, ..Options::default() };
        let graph = text::parse(PROGRAM).unwrap();
        let output = compile(graph, &[None, None, None], Backend::of(&backend()), options, &mut told).unwrap();
        (told.0, output.records)
    };
    let (first, records) = told(None);
    assert_eq!(first.iter().map(|t| (t.0, t.1)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
    assert!((first[0].2 - 0.2).abs() < 1e-9, "the mode says what a problem takes: {}", first[0].2);
    assert!(first[1].2 > 0.0);
    assert_eq!(told(Some(&records)).0, []);
}

#[test]
fn a_measured_build_is_built_again_from_its_records() {
    let first = build(Tuning { mode: TuneMode::Fast, ..Tuning::default() }).unwrap();
    let problems = first.records.len();
    assert_eq!(first.tune_report.measured, problems);
    assert!(first.records.iter().all(|(_, r)| r.mode == TuneMode::Fast && r.measured.iter().all(|m| m.runs > 0)));
    let again = pinned(&first.records).unwrap();
    let expected = TuneReport { pinned: problems, ..TuneReport::default() };
    assert_eq!(again.tune_report, expected, "nothing is measured, whatever the mode");
    assert_eq!(again.records, first.records);
    assert_eq!(decided(&again.engine), decided(&first.engine));
}

#[test]
fn known_records_save_measuring_when_they_are_thorough_enough() {
    let first = build(Tuning { mode: TuneMode::Fast, ..Tuning::default() }).unwrap();
    let problems = first.records.len();
    let known = |records, mode| build(Tuning { mode, known: Some(records), pinned: None }).unwrap();
    let reused = known(&first.records, TuneMode::Fast);
    assert_eq!(reused.tune_report, TuneReport { reused: problems, ..TuneReport::default() });
    assert_eq!(decided(&reused.engine), decided(&first.engine));
    let off = known(&first.records, TuneMode::Off);
    assert_eq!(off.tune_report, TuneReport::default());
    let untuned = build(Tuning::default()).unwrap();
    assert_eq!(known(&untuned.records, TuneMode::Fast).tune_report.measured, problems);
    // A candidate that is no longer there is measured again.
    let mut gone = first.records.clone();
    let replaced = first.records.iter().map(|(problem, record)| {
        let choice = CandidateName("linear.of_the_past()".into());
        (problem.to_owned(), Record { choice, ..record.clone() })
    });
    replaced.for_each(|(problem, record)| gone.insert(problem, record));
    assert_eq!(known(&gone, TuneMode::Fast).tune_report.measured, problems);
}

#[test]
fn pinned_records_decide_alone() {
    let untuned = build(Tuning::default()).unwrap();
    let missing = pinned(&untuned.records.none()).unwrap();
    assert_eq!(missing.tune_report, TuneReport { unpinned_missing: 2, ..TuneReport::default() });
    assert_eq!(decided(&missing.engine), decided(&untuned.engine));
    let mut wrong = untuned.records.clone();
    let (problem, record) = untuned.records.iter().next().unwrap();
    wrong
        .insert(problem, Record { choice: CandidateName("linear.panels(1: panels_f32<n8>)".into()), ..record.clone() });
    let refused = pinned(&wrong).unwrap_err();
    assert!(matches!(refused, CompileError::Tune(TuneError::PinnedCandidate { .. })), "{refused}");
    assert!(refused.to_string().contains(problem) && refused.to_string().contains("<n8>"), "{refused}");
    let foreign = Records::of(Backend::of(&CpuDevice::with_isa(Isa::Portable, Some(1))));
    let refused = pinned(&foreign).unwrap_err().to_string();
    assert!(refused.contains("are for cpu") && refused.contains("portable"), "{refused}");
}
