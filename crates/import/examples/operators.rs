//! Says of each operator named on the input, one a line, whether the importer translates it, `torch.ops.aten.add.Tensor` of PyTorch
//! and `ai.onnx.Add` of ONNX:
//! `cargo run -p regraft-import --example operators < NAMES`

use std::io::{BufRead, Write};

use regraft_import::{onnx, pt2::import as pt2};

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for name in std::io::stdin().lock().lines() {
        let name = name?;
        let (known, refusal) = match name.strip_prefix("ai.onnx.") {
            Some(operator) => (onnx::is_known("", operator), onnx::refusal("", operator)),
            None => (pt2::is_known(&name), pt2::refusal(&name)),
        };
        match (known, refusal) {
            (false, _) => writeln!(out, "{name}\tunknown")?,
            (true, Some(why)) => writeln!(out, "{name}\trefused: {why}")?,
            (true, None) => writeln!(out, "{name}\ttranslated")?,
        }
    }
    Ok(())
}
