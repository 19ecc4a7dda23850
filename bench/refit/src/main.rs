//! What refits cost: every kind of refit of a few models, each next to a plain parallel copy of the same bytes in the same
//! run, as a table and as JSON.
//!
//! ```text
//! python bench/refit/export.py MODELS                  # with the environment of scripts/python-env.sh
//! cargo run --release -p regraft-bench-refit -- MODELS [--json FILE]
//! cargo run --release -p regraft-bench-refit -- MODELS --load bert_base
//! cargo run --release -p regraft-bench-refit -- MODELS --load bert_base --device cuda --every 100
//! ```
#![deny(unsafe_code)]

mod adapters;
mod lent;
mod load;
mod refits;
mod times;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use regraft::DeviceName;
use serde_json::json;

use self::refits::Row;

#[derive(Parser)]
#[command(about = "Measure refits next to copies of the same bytes")]
struct Args {
    /// Folder of exported programs, as bench/refit/export.py makes it
    models: PathBuf,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only this model
    #[arg(long)]
    only: Option<String>,
    /// Measure the latencies of a one-thread load on this model, with and without regular refits, instead
    #[arg(long, value_name = "MODEL")]
    load: Option<String>,
    /// Seconds of load
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Milliseconds between refits of a load
    #[arg(long, default_value_t = 1000)]
    every: u64,
    /// Where models run: cpu, cuda, cuda:1
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn run(args: &Args) -> Result<()> {
    if let Some(name) = &args.load {
        let every = Duration::from_millis(args.every);
        let figures = load::measure(&args.models.join(format!("{name}.pt2")), args.device, args.seconds, every)?;
        println!("{}", figures.text());
        return Ok(());
    }
    let mut programs: Vec<PathBuf> = std::fs::read_dir(&args.models)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "pt2"))
        .filter(|path| args.only.as_deref().is_none_or(|only| path.file_stem().is_some_and(|s| s == only)))
        .collect();
    programs.sort();
    let mut all = Vec::new();
    println!("| model | refit | slots | bytes | refit | copy | refit ÷ copy | publish |");
    println!("|---|---|---|---|---|---|---|---|");
    for program in programs {
        let name = program.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        for row in refits::measure(&program, args.device, args.rounds)? {
            println!("{}", markdown(&name, &row));
            all.push(json!({"model": name, "refit": row}));
        }
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

fn markdown(model: &str, row: &Row) -> String {
    format!(
        "| {model} | {} | {} | {:.1} MB | {:.2} ms | {:.2} ms | {:.2} | {:.1} µs |",
        row.what,
        row.slots,
        row.bytes as f64 / 1e6,
        row.refit_ms,
        row.copy_ms,
        row.ratio,
        row.publish_us,
    )
}
