//! Says of each operator named on the input, one a line, whether the importer translates it:
//! `cargo run -p regraft-import --example operators < NAMES`

use std::io::{BufRead, Write};

use regraft_import::pt2::import::{is_known, refusal};

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for name in std::io::stdin().lock().lines() {
        let name = name?;
        match (is_known(&name), refusal(&name)) {
            (false, _) => writeln!(out, "{name}\tunknown")?,
            (true, Some(why)) => writeln!(out, "{name}\trefused: {why}")?,
            (true, None) => writeln!(out, "{name}\ttranslated")?,
        }
    }
    Ok(())
}
