//! What loading an engine costs next to a full refit, and what a hit of the engine cache costs next to a build.
//!
//! ```text
//! python bench/refit/export.py MODELS                  # with the environment of scripts/python-env.sh
//! cargo run --release -p regraft-bench-engine -- MODELS [--rounds N] [--only MODEL] [--json FILE]
//! ```
//!
//! Everything that is compared is interleaved in one run, with all files in the page cache; figures are medians.
#![forbid(unsafe_code)]

mod cache;
mod load;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Measure loads next to refits, and cache hits next to builds")]
struct Args {
    /// Folder of exported programs, as bench/refit/export.py makes it
    models: PathBuf,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only this model
    #[arg(long)]
    only: Option<String>,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let programs = programs(args)?;
    let folder = tempfile::tempdir()?;
    println!("{}", cache::HEADING);
    let mut caches = Vec::new();
    for (name, program) in &programs {
        let row = cache::measure(program, folder.path(), args.rounds)?;
        println!("{}", row.markdown(name));
        caches.push(json!({"model": name, "ms": row.json()}));
    }
    println!("\n{}", load::HEADING);
    let mut loads = Vec::new();
    for (name, program) in &programs {
        for row in load::measure(program, folder.path(), args.rounds)? {
            println!("{}", row.markdown(name));
            loads.push(json!({"model": name, "engine": row.what, "ms": row.json()}));
        }
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&json!({"cache": caches, "load": loads}))?)?;
    }
    Ok(())
}

fn programs(args: &Args) -> Result<Vec<(String, PathBuf)>> {
    let mut programs: Vec<(String, PathBuf)> = std::fs::read_dir(&args.models)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "pt2"))
        .filter_map(|path| Some((path.file_stem()?.to_string_lossy().into_owned(), path)))
        .filter(|(name, _)| args.only.as_ref().is_none_or(|only| only == name))
        .collect();
    programs.sort();
    Ok(programs)
}

/// Milliseconds that `what` takes, and what it gives.
fn timed<T>(what: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let start = Instant::now();
    let made = what()?;
    Ok((start.elapsed().as_secs_f64() * 1e3, made))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn megabytes(path: &Path) -> f64 {
    std::fs::metadata(path).map_or(f64::NAN, |m| m.len() as f64 / 1e6)
}
