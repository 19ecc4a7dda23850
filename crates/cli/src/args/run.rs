//! `run`.

use std::path::PathBuf;

use clap::Args;

use super::{Common, ThreadArgs};

pub(super) const RUN: &str = "Run an engine once on arrays from .npy files (numpy.save).

  regraft run model.rgf --input x.npy --output-dir out
  regraft run model.rgf --input ids.npy --input attention_mask=mask.npy --output-dir out

Inputs are given by name (`regraft inspect` lists them) or in the program's order. Dtypes and shapes must be those of \
the program. Outputs become out/output_0.npy, out/output_1.npy, ...: all of them, or none if anything fails. \
NumPy has no bf16: such inputs and outputs are f32 in the files.";

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// An input: NAME=FILE, or FILE for the next input in the program's order
    #[arg(short, long = "input", value_name = "[NAME=]FILE.npy")]
    pub(crate) inputs: Vec<String>,
    /// The folder for output_0.npy, ...; created if its parent exists
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output_dir: PathBuf,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}
