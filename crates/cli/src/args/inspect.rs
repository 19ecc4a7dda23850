//! What engines hold: `inspect` and `diff`.

use std::path::PathBuf;

use clap::Args;

use super::{Common, ThreadArgs};

pub(super) const INSPECT: &str =
    "Show the inputs, weights and kernels of an engine. Nothing is run, and the engine may be one for another \
machine.

  regraft inspect model.rgf              inputs, outputs, sizes, mode, target
  regraft inspect model.rgf --kernels    one line per node of the plan
  regraft inspect model.rgf --sources    the tensors that a refit takes
  regraft inspect model.rgf --slots      the weight buffers, and the sources that each is made from
  regraft inspect model.rgf --manifest   the sources with their digests, and where each is kept
  regraft inspect model.rgf --plan       the plan as text";

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// List the plan's nodes: kernel, op, types, module
    #[arg(long)]
    pub(crate) kernels: bool,
    /// List the sources: name, kind, type, slots made from it
    #[arg(long)]
    pub(crate) sources: bool,
    /// List the slots: name, format, shape, bytes, sources
    #[arg(long)]
    pub(crate) slots: bool,
    /// List the weights manifest: name, type, digest, where it is kept
    #[arg(long)]
    pub(crate) manifest: bool,
    /// Print the plan as text
    #[arg(long)]
    pub(crate) plan: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(super) const DIFF: &str = "List the sources and slots that differ between two engines, by name.

  regraft diff model.rgf tuned.rgf
  regraft diff model.rgf tuned.rgf --json

Sources are compared by their digests, slots byte by byte. A stripped engine has neither: its sources are compared by type.";

#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// An engine
    #[arg(value_name = "A.rgf")]
    pub(crate) a: PathBuf,
    /// Another one
    #[arg(value_name = "B.rgf")]
    pub(crate) b: PathBuf,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}
