//! Engines that travel without weights: `strip` and `check`.

use std::path::PathBuf;

use clap::Args;

use super::{Common, NameFlags};

pub(super) const STRIP: &str = "Take the weights out of an engine, to distribute them separately.

  regraft strip model.rgf -o plan.rgf
  regraft strip model.rgf -o plan.rgf --identical    binds to these weights and no others

On the machine that runs it, give it weights: regraft bind plan.rgf --weights model.safetensors -o model.rgf. Tensors that no state \
dict holds, such as constants in the program's code, stay inside. The digests of the weights stay too: \
regraft check --same says whether a file has the same weights.";

#[derive(Args, Debug)]
pub(crate) struct StripArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// The engine to write
    #[arg(short, long, value_name = "STRIPPED.rgf")]
    pub(crate) output: PathBuf,
    /// Accept no weights but those that are taken out
    #[arg(long)]
    pub(crate) identical: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(super) const CHECK: &str = "Compare a weight file with the weights manifest of an engine, and list every mismatch.

  regraft check model.rgf weights.safetensors
  regraft check model.rgf weights.safetensors --same    also that they are the weights the engine was made with
  regraft inspect model.rgf --manifest                  shows the manifest

Names, shapes and dtypes are compared; no tensor is read, and the engine may be one for another machine. With --same, and \
for engines compiled with --identical, contents are compared by their digests. The exit status is 0 when a bind or a \
refit would take the file, and 1 otherwise. Names are matched as by `regraft refit`; the rule is printed.";

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// The weights: .safetensors, .safetensors.index.json, .pt2, .pt, .bin or .onnx, or a folder of Hugging Face
    #[arg(value_name = "WEIGHTS")]
    pub(crate) weights: PathBuf,
    /// The contents must be those that the engine was made with
    #[arg(long)]
    pub(crate) same: bool,
    #[command(flatten)]
    pub(crate) names: NameFlags,
    #[command(flatten)]
    pub(crate) common: Common,
}
