//! The flags of `compile` about tuning.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use regraft::TuneMode;

/// How thoroughly kernels are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TuneArg {
    /// Not at all: takes the kernels that usually do well
    #[default]
    Off,
    /// About 0.1 s for each problem that is new on this machine
    Fast,
    /// About 3 s for each problem
    Full,
}

impl From<TuneArg> for TuneMode {
    fn from(tune: TuneArg) -> Self {
        match tune {
            TuneArg::Off => TuneMode::Off,
            TuneArg::Fast => TuneMode::Fast,
            TuneArg::Full => TuneMode::Full,
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TuneFlags {
    /// Measure which kernel runs each problem fastest, as thoroughly as this [default: off]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) tune: Option<TuneArg>,
    /// Measure nothing, and choose as these records say
    #[arg(long, value_name = "RECORDS.json", conflicts_with = "tune")]
    pub(crate) tune_records: Option<PathBuf>,
    /// Write what was measured and chosen to this file, as JSON
    #[arg(long, value_name = "RECORDS.json")]
    pub(crate) save_tune_records: Option<PathBuf>,
}
