//! Imports `.pt2` files and says what they hold: `cargo run --example import -- [--text] FILE...`

use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let (mut text, mut failed) = (false, false);
    for arg in std::env::args().skip(1) {
        if arg == "--text" {
            text = true;
            continue;
        }
        let start = Instant::now();
        match regraft_import::import_pt2(&arg) {
            Ok(imported) => {
                let report = imported.report;
                println!(
                    "{arg}: {} nodes, now {}; {} sources, {:.1} MB; {:.0} ms",
                    report.nodes,
                    imported.graph.nodes().len(),
                    report.sources,
                    report.bytes as f64 / 1e6,
                    start.elapsed().as_secs_f64() * 1e3,
                );
                if text {
                    println!("{}", regraft_ir::text::print(&imported.graph));
                }
            }
            Err(error) => {
                failed = true;
                eprintln!("{error}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
