//! `compile`, and what engines are.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use regraft::{DType, KeepSources, Mode, WeightFormat};

use super::{CacheFlags, Common, ThreadArgs, TuneFlags};

pub(super) const COMPILE: &str = "Compile an exported program (.pt2 or .onnx) to an engine (.rgf) for this machine: its CPU, or a GPU with --device.

In Python:
  program = torch.export.export(net, args)
  torch.export.save(program, \"model.pt2\")

Then:
  regraft compile model.pt2 -o model.rgf                   takes new weights later
  regraft compile model.pt2 -o model.rgf --mode frozen     never changes
  regraft compile model.pt2 -o plan.rgf --mode stripped    no weights inside; see `regraft bind`
  regraft compile model.pt2 -o plan.rgf --mode stripped --identical
                                                           binds to these weights and no others
  regraft compile model.pt2 -o model.rgf --keep-sources prepacked
                                                           twice the size, loads by mapping only
  regraft compile model.pt2 -o model.rgf --tune fast --save-tune-records tuned.json
                                                           measures kernels on this machine
  regraft compile model.pt2 -o model.rgf --tune-records tuned.json
                                                           the same engine, byte for byte
  regraft compile model.pt2 -o model.rgf --dtype bf16      computes an f32 model in bfloat16
  regraft compile model.pt2 -o model.rgf --weights int8 --sample x.npy
                                                           a quarter of the memory, and what that costs on x
  regraft compile model.onnx -o model.rgf                  an ONNX model, its initializers as weights
  regraft compile model.pt2 --dump plan                    shows what a run will execute
  regraft compile model.pt2 --dump-dir stages              one text file per stage and pass

A program saved without weights becomes a stripped engine.

Engines are kept in a cache without their weights, and reused when the same program is compiled with other names or weights: see \
`regraft help cache`.";

#[derive(Args, Debug)]
pub(crate) struct CompileArgs {
    /// The program, as torch.export.save wrote it, or an ONNX model
    #[arg(value_name = "MODEL.pt2")]
    pub(crate) program: PathBuf,
    /// The engine to write
    #[arg(short, long, value_name = "MODEL.rgf", required_unless_present_any = ["dump", "dump_dir"])]
    pub(crate) output: Option<PathBuf>,
    /// What the engine holds [default: refittable]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<ModeArg>,
    /// Where a refittable engine has its sources [default: embedded]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(crate) keep_sources: Option<KeepSourcesArg>,
    /// Accept no weights but those of the program
    #[arg(long)]
    pub(crate) identical: bool,
    /// Compute a program of f32 in this float, as autocast does; its weights, inputs and outputs stay f32
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<HalfArg>,
    /// Store the weights of linear layers as these integers; refits and adapters still work from full precision
    #[arg(long, value_enum)]
    pub(crate) weights: Option<WeightsArg>,
    /// Inputs to measure the error of --weights on: NAME=FILE, or FILE for the next input; generated if none is given
    #[arg(long, value_name = "[NAME=]FILE.npy", requires = "weights")]
    pub(crate) sample: Vec<String>,
    #[command(flatten)]
    pub(crate) cache: CacheFlags,
    #[command(flatten)]
    pub(crate) tune: TuneFlags,
    /// Print the program as text after a stage: imported, lower, plan, recipes, or the name of a pass
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) dump: Vec<String>,
    /// Write the texts to files in this directory instead; all stages unless --dump names some
    #[arg(long, value_name = "DIR")]
    pub(crate) dump_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// What an engine file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// Plan, recipes and weights: takes new weights; see --keep-sources
    Refittable,
    /// Plan and packed weights, no recipes: never changes
    Frozen,
    /// Plan and recipes, no weights: small; bind it before it runs
    Stripped,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Refittable => Mode::Refittable,
            ModeArg::Frozen => Mode::Frozen,
            ModeArg::Stripped => Mode::Stripped,
        }
    }
}

/// Where a refittable engine has the sources of its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeepSourcesArg {
    /// In the engine; slots are made when it is loaded
    Embedded,
    /// In the engine, beside its slots: twice the size, loads by mapping only
    Prepacked,
    /// In the weight files they come from, by path and digest; the engine has the slots
    Reference,
    /// Nowhere; a refit must bring every source of each slot that it changes
    None,
}

impl From<KeepSourcesArg> for KeepSources {
    fn from(keep: KeepSourcesArg) -> Self {
        match keep {
            KeepSourcesArg::Embedded => KeepSources::Embedded,
            KeepSourcesArg::Prepacked => KeepSources::Prepacked,
            KeepSourcesArg::Reference => KeepSources::Reference,
            KeepSourcesArg::None => KeepSources::None,
        }
    }
}

/// A float narrower than f32.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum HalfArg {
    /// bfloat16: the range of f32, 8 bits of precision
    Bf16,
    /// IEEE half: 11 bits of precision, up to 65504
    F16,
}

impl From<HalfArg> for DType {
    fn from(half: HalfArg) -> DType {
        match half {
            HalfArg::Bf16 => DType::BF16,
            HalfArg::F16 => DType::F16,
        }
    }
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WeightsArg {
    /// 8 bits with a scale for each row; inputs of the layer are rounded to 8 bits, too
    Int8,
    /// 4 bits with a scale for every 32 values, for products with single rows
    Int4,
}

impl From<WeightsArg> for WeightFormat {
    fn from(weights: WeightsArg) -> WeightFormat {
        match weights {
            WeightsArg::Int8 => WeightFormat::Int8,
            WeightsArg::Int4 => WeightFormat::Int4,
        }
    }
}
