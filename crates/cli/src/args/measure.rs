//! What engines take, whole and node by node.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use super::{Common, ThreadArgs};

pub(super) const BENCH: &str = "Measure an engine on random inputs.

  regraft bench model.rgf
  regraft bench model.rgf --dims s0=1,s1=128 --runs 200
  regraft bench refittable.rgf --against frozen.rgf

Latency is that of one run at the sizes that the program was exported with, or at --dims. The refit changes every float \
tensor, so that every slot is rebuilt; right after each refit the same bytes are copied on the same threads, into \
memory that is already in use: no refit can be much faster. --against interleaves runs of both engines (A B B A), so \
that both are measured at the same speeds of the machine.";

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// Number of runs, and of rounds with --against [default: about two seconds' worth]
    #[arg(long, value_name = "N")]
    pub(crate) runs: Option<NonZeroUsize>,
    /// Sizes of symbolic dims, such as s0=8,s1=128
    #[arg(long, value_name = "SYMBOL=SIZE", value_delimiter = ',', value_parser = symbol_size)]
    pub(crate) dims: Vec<(String, i64)>,
    /// Another engine of the same program, to compare latencies with
    #[arg(long, value_name = "OTHER.rgf")]
    pub(crate) against: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

pub(super) const PROFILE: &str = "Show where the time of a run goes, node by node, next to what this machine could do.

  regraft profile model.rgf
  regraft profile model.rgf --dims s0=8 --top 40
  regraft profile model.rgf --trace trace.json      for https://ui.perfetto.dev

Each node is waited for, so that its time does not include others; the nodes with the longest medians come first. The roof is what \
the device reaches in a large product (operations per second) and in a sum of large tensors (bytes per second), measured right after \
the runs. The least time of a node is its operations or its bytes at these rates, whichever takes longer; \"of roof\" is that \
time divided by the measured one. It can exceed 100 % when tensors stay in caches.";

#[derive(Args, Debug)]
pub(crate) struct ProfileArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// Number of runs
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) runs: NonZeroUsize,
    /// Sizes of symbolic dims, such as s0=8,s1=128
    #[arg(long, value_name = "SYMBOL=SIZE", value_delimiter = ',', value_parser = symbol_size)]
    pub(crate) dims: Vec<(String, i64)>,
    /// How many nodes to list
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) top: NonZeroUsize,
    /// Write the nodes of one run in the format of Chrome's traces
    #[arg(long, value_name = "TRACE.json")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn symbol_size(text: &str) -> Result<(String, i64), String> {
    let (name, size) = text.split_once('=').ok_or("expected SYMBOL=SIZE, such as s0=8")?;
    let size = size.trim().parse().map_err(|_| format!("`{size}` is not a size"))?;
    Ok((name.trim().to_owned(), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_names_with_numbers() {
        assert_eq!(symbol_size("s0=8"), Ok(("s0".into(), 8)));
        assert!(symbol_size("s0").is_err() && symbol_size("s0=x").is_err());
    }
}
