//! What differs between two sets of weights.

use std::path::PathBuf;

use clap::Args;

use super::Common;

pub(super) const DELTA: &str = "Write what differs between two sets of weights to a file, a fraction of their size.

  regraft delta base.safetensors tuned.safetensors -o tuned.rgd
  regraft delta base.rgf tuned.rgf -o tuned.rgd
  regraft refit base.rgf --delta tuned.rgd -o tuned.rgf     the engine with the second weights, bit for bit
  curl HOST/v2/models/NAME/weights/stage?kind=delta --data-binary @tuned.rgd

Weights are read from engines that hold their sources and from every file that `regraft refit` reads; both must have the same \
names. A delta applies only to the exact weights that it was made from; others are refused by their digests.";

#[derive(Args, Debug)]
pub(crate) struct DeltaArgs {
    /// The weights to start from
    #[arg(value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// The weights to end with
    #[arg(value_name = "NEW")]
    pub(crate) new: PathBuf,
    /// The delta to write
    #[arg(short, long, value_name = "DELTA.rgd")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) common: Common,
}
