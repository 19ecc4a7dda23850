//! Sentence embeddings with MiniLM, refitted: what `make demo` runs.
//!
//! The program is compiled without weights, bound to the trained ones, refitted to a changed checkpoint and back. Every
//! answer is compared with PyTorch's, which is committed beside the program; PyTorch itself is not needed.
//!
//!     regraft-demo DEMO_DIRECTORY MODEL_DIRECTORY
#![forbid(unsafe_code)]

mod report;

use std::{error::Error, path::Path, process::ExitCode, time::Instant};

use regraft::{Compiler, Mode, Model, RefitOptions, RefitReport, SlotCopier, StateDict, Tensor};
use serde::Deserialize;
use tokenizers::{PaddingParams, Tokenizer};

use crate::report::{Report, mb, ms};

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Larger differences from PyTorch fail the demo.
const TOLERANCE: f64 = 1e-4;
const RUNS: usize = 30;
/// Refits there and back that are timed.
const ROUNDS: usize = 10;

/// PyTorch's answers.
#[derive(Deserialize)]
struct Expected {
    sentences: Vec<String>,
    input_ids: Vec<Vec<i64>>,
    trained: Answers,
    change: String,
    changed: Answers,
}

#[derive(Deserialize)]
struct Answers {
    similarity: Vec<Vec<f64>>,
    embeddings_head: Vec<Vec<f64>>,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [demo, model] = args.as_slice() else {
        eprintln!("usage: regraft-demo DEMO_DIRECTORY MODEL_DIRECTORY (or simply: make demo)");
        return ExitCode::from(2);
    };
    match run(demo.as_ref(), model.as_ref()) {
        Ok(wrong) if wrong.is_empty() => ExitCode::SUCCESS,
        Ok(wrong) => {
            wrong.iter().for_each(|what| eprintln!("error: {what}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo; returns what is not as it should be.
fn run(demo: &Path, files: &Path) -> Res<Vec<String>> {
    let expected: Expected = serde_json::from_slice(&std::fs::read(demo.join("expected.json"))?)?;
    let mut report = Report::default();

    let start = Instant::now();
    let compiled = Compiler::new().mode(Mode::Stripped).compile(demo.join("minilm.pt2"))?;
    let nodes = compiled.engine.plan.graph.nodes().len();
    report.time("compile", start, &format!("{} nodes become {nodes} in the plan; no weights yet", compiled.nodes));
    let model = compiled.into_model()?;

    let start = Instant::now();
    let trained = known(&model, regraft::open_weights(files.join("model.safetensors"))?);
    let bound = model.refit(&trained, &RefitOptions::default())?;
    let slots = bound.recomputed_slots.len();
    report.time("bind", start, &format!("{} tensors become {slots} slots, {}", trained.len(), mb(bound.bytes)));

    let inputs = tokenize(&expected, &files.join("tokenizer.json"))?;
    let start = Instant::now();
    let first = embed(&model, &inputs)?;
    report.time("first run", start, &format!("{} sentences of {} tokens", inputs[0].shape()[0], inputs[0].shape()[1]));
    let threads = model.device().threads();
    let times = run_times(&model, &inputs)?;
    report.median("run", times, &format!("{RUNS} runs on {threads} threads"));

    println!("\nSentences");
    for (number, sentence) in expected.sentences.iter().enumerate() {
        println!("  {}  {sentence}", number + 1);
    }
    compare("Trained weights", &first, &expected.trained, &mut report);

    let exchanged = exchange_layers(&trained, 2, 3);
    let there = model.refit(&exchanged, &RefitOptions::default())?;
    compare(&format!("Refitted: {}", expected.change), &embed(&model, &inputs)?, &expected.changed, &mut report);

    model.refit(&trained, &RefitOptions::default())?;
    let same = embed(&model, &inputs)?.bit_equal(&first);
    println!(
        "\nRefitted back: the embeddings are {}",
        if same { "bit for bit the first ones" } else { "NOT the first ones" }
    );

    let (refits, copies) = refit_times(&model, &trained, &exchanged, &there)?;
    let changed = there.recomputed_slots.len();
    let of = format!(
        "{changed} of {slots} slots, {}, {} refits; tensors that stay are shared in memory",
        mb(there.bytes),
        2 * ROUNDS
    );
    report.median("refit", refits, &of);
    report.median("copy", copies, "the same bytes on the same threads, for comparison");
    report.print();
    let mut wrong = report.larger_than(TOLERANCE);
    if !same {
        wrong.push("refitting back did not give the first embeddings again".into());
    }
    Ok(wrong)
}

/// The tensors that the program has; the file's pooling layer is not part of it.
fn known(model: &Model, weights: StateDict) -> StateDict {
    let names = model.refit_map().by_name();
    weights.iter().filter(|(name, _)| names.contains_key(name)).map(|(n, t)| (n.to_owned(), t.clone())).collect()
}

/// The same tensors with two encoder layers exchanged: a checkpoint that gives other answers and needs no training.
fn exchange_layers(weights: &StateDict, one: usize, other: usize) -> StateDict {
    let (one, other) = (format!("encoder.layer.{one}."), format!("encoder.layer.{other}."));
    let renamed = |name: &str| {
        if name.contains(&one) { name.replace(&one, &other) } else { name.replace(&other, &one) }
    };
    weights.iter().map(|(name, tensor)| (renamed(name), tensor.clone())).collect()
}

/// Ids and mask of the sentences, padded to the longest; the ids must be those that PyTorch was given.
fn tokenize(expected: &Expected, file: &Path) -> Res<Vec<Tensor>> {
    let mut tokenizer = Tokenizer::from_file(file)?;
    tokenizer.with_padding(Some(PaddingParams::default()));
    let encodings = tokenizer.encode_batch(expected.sentences.clone(), true)?;
    let ids: Vec<Vec<i64>> = encodings.iter().map(|e| e.get_ids().iter().map(|&id| id.into()).collect()).collect();
    if ids != expected.input_ids {
        return Err("the tokenizer gives other ids than PyTorch's side had".into());
    }
    let shape = [ids.len(), ids.first().map_or(0, Vec::len)];
    let mask: Vec<i64> = encodings.iter().flat_map(|e| e.get_attention_mask()).map(|&m| m.into()).collect();
    Ok(vec![Tensor::from_slice(&shape, &ids.concat()), Tensor::from_slice(&shape, &mask)])
}

fn embed(model: &Model, inputs: &[Tensor]) -> Res<Tensor> {
    let output = model.run(inputs)?.into_iter().next();
    output.ok_or_else(|| "the program has no output".into())
}

/// Prints the cosine similarities beside PyTorch's, and records the errors.
fn compare(title: &str, embeddings: &Tensor, expected: &Answers, report: &mut Report) {
    let width = embeddings.shape()[1];
    let values = embeddings.to_f64_vec();
    let rows: Vec<&[f64]> = values.chunks(width).collect();
    // Embeddings have length 1: their products are the cosines.
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let similarity: Vec<Vec<f64>> = rows.iter().map(|a| rows.iter().map(|b| product(a, b)).collect()).collect();
    println!("\n{title}: cosine similarities, and PyTorch's");
    for (number, (ours, theirs)) in similarity.iter().zip(&expected.similarity).enumerate() {
        let text = |row: &[f64]| row.iter().map(|v| format!("{v:6.3}")).collect::<Vec<_>>().join(" ");
        println!("  {}  {}    {}", number + 1, text(ours), text(theirs));
    }
    let heads: Vec<Vec<f64>> =
        rows.iter().zip(&expected.embeddings_head).map(|(row, head)| row[..head.len().min(width)].to_vec()).collect();
    report.error(title, largest_difference(&similarity, &expected.similarity), "similarities");
    report.error(title, largest_difference(&heads, &expected.embeddings_head), "embeddings");
}

/// Infinite when the shapes differ or a value is not a number.
fn largest_difference(ours: &[Vec<f64>], theirs: &[Vec<f64>]) -> f64 {
    let (a, b) = (ours.concat(), theirs.concat());
    if a.len() != b.len() || a.iter().any(|v| v.is_nan()) {
        return f64::INFINITY;
    }
    a.iter().zip(&b).fold(0.0, |worst, (x, y)| worst.max((x - y).abs()))
}

fn run_times(model: &Model, inputs: &[Tensor]) -> Res<Vec<f64>> {
    let timed = |_| {
        let start = Instant::now();
        embed(model, inputs)?;
        Ok(ms(start))
    };
    (0..RUNS).map(timed).collect()
}

/// Times of refits there and back, each followed by a copy of the bytes it wrote into memory that is in use already.
fn refit_times(
    model: &Model,
    trained: &StateDict,
    changed: &StateDict,
    report: &RefitReport,
) -> Res<(Vec<f64>, Vec<f64>)> {
    let written: Vec<&str> = report.recomputed_slots.iter().map(|s| s.name.as_str()).collect();
    let slots = (0..model.plan().slots.len()).filter(|&i| written.contains(&model.plan().slot_name(i)));
    let copier = SlotCopier::new(model, slots)?;
    let (mut refits, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for weights in [changed, trained] {
            let start = Instant::now();
            model.refit(weights, &RefitOptions::default())?;
            refits.push(ms(start));
            let generation = model.generation().ok_or("the model has no weights")?;
            copies.push(copier.copy(&generation)?.as_secs_f64() * 1e3);
        }
    }
    Ok((refits, copies))
}
