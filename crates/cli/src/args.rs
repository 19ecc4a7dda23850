//! What the command line may say. The texts here are what `--help` teaches.

mod cache;
mod delta;
mod distribute;
mod measure;
mod names;
mod serve;
mod tune;

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use regraft::{DType, Device, DeviceName, KeepSources, Mode, Threads, WeightFormat};

pub(crate) use self::{
    cache::{CacheAction, CacheArgs, CacheFlags},
    delta::DeltaArgs,
    distribute::{CheckArgs, StripArgs},
    measure::{BenchArgs, ProfileArgs},
    names::NameFlags,
    serve::ServeArgs,
    tune::TuneFlags,
};

const ABOUT: &str = "Compile a trained network once, and replace its weights without compiling again, at about the speed of copying them.

A program that torch.export.save wrote becomes an engine (.rgf). An engine runs, and takes new weights bit-exactly \
without being compiled again.

  regraft compile model.pt2 -o model.rgf
  regraft run     model.rgf --input x.npy --output-dir out
  regraft refit   model.rgf --weights tuned.safetensors -o tuned.rgf

`regraft help COMMAND` shows each command with examples.";

#[derive(Debug, Parser)]
#[command(name = "regraft", version, about = "Compile a network once, and replace its weights without compiling again", long_about = ABOUT)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compile an exported program (.pt2 or .onnx) to an engine (.rgf)
    #[command(long_about = COMPILE)]
    Compile(CompileArgs),
    /// Run an engine once on arrays from .npy files
    #[command(long_about = RUN)]
    Run(RunArgs),
    /// Give an engine new weights; no compiling
    #[command(long_about = REFIT)]
    Refit(RefitArgs),
    /// Give a stripped engine its weights
    #[command(long_about = BIND)]
    Bind(BindArgs),
    /// Take the weights out of an engine
    #[command(long_about = distribute::STRIP)]
    Strip(StripArgs),
    /// Compare a weight file with what an engine takes; loads neither
    #[command(long_about = distribute::CHECK)]
    Check(CheckArgs),
    /// Write what differs between two sets of weights to a file, for refits
    #[command(long_about = delta::DELTA)]
    Delta(DeltaArgs),
    /// List what differs between two engines: sources and slots
    #[command(long_about = DIFF)]
    Diff(DiffArgs),
    /// Show the inputs, weights and kernels of an engine; runs nothing
    #[command(long_about = INSPECT)]
    Inspect(InspectArgs),
    /// Measure latency, refit time and a plain copy of the same bytes
    #[command(long_about = measure::BENCH)]
    Bench(BenchArgs),
    /// Show where the time of a run goes, node by node, beside what this machine could do
    #[command(long_about = measure::PROFILE)]
    Profile(ProfileArgs),
    /// Serve engines over the network, and change their weights while they serve
    #[command(long_about = serve::SERVE)]
    Serve(ServeArgs),
    /// Inspect and clean up the engine cache
    #[command(long_about = cache::CACHE)]
    Cache(CacheArgs),
    /// Show what this machine has: processor, GPUs, libraries, and what each missing one costs
    #[command(long_about = DOCTOR)]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    #[command(long_about = COMPLETIONS)]
    Completions(CompletionsArgs),
}

impl Command {
    /// How to print, whatever the command.
    pub(crate) fn common(&self) -> Common {
        match self {
            Command::Compile(a) => a.common,
            Command::Run(a) => a.common,
            Command::Refit(a) => a.common,
            Command::Bind(a) => a.common,
            Command::Strip(a) => a.common,
            Command::Check(a) => a.common,
            Command::Delta(a) => a.common,
            Command::Diff(a) => a.common,
            Command::Inspect(a) => a.common,
            Command::Bench(a) => a.common,
            Command::Profile(a) => a.common,
            Command::Serve(a) => a.common,
            Command::Cache(a) => a.common,
            Command::Doctor(a) => a.common,
            Command::Completions(_) => Common::default(),
        }
    }
}

#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Common {
    /// Print one JSON object with the same facts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print more; errors list every problem, however many
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ThreadArgs {
    /// Threads of runs, and as many of refits [default: one per core]; results do not depend on it
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Where to run: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceName::Cpu)]
    pub(crate) device: DeviceName,
}

impl ThreadArgs {
    pub(crate) fn get(self) -> Threads {
        self.threads.map_or(Threads::Auto, |n| Threads::Count(n.get()))
    }

    /// The device, opened.
    pub(crate) fn open(self) -> Result<Arc<dyn Device>, regraft::Error> {
        regraft::device(self.device, self.get())
    }
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

/// What a bound engine may be saved as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BoundModeArg {
    /// Takes new weights later
    Refittable,
    /// Never changes
    Frozen,
}

impl From<BoundModeArg> for Mode {
    fn from(mode: BoundModeArg) -> Self {
        match mode {
            BoundModeArg::Refittable => Mode::Refittable,
            BoundModeArg::Frozen => Mode::Frozen,
        }
    }
}

/// Where a refittable engine has the sources of its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeepSourcesArg {
    /// In the engine; slots are made when it is loaded
    Embedded,
    /// In the engine, beside its slots: twice the size, loads by mapping alone
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

const COMPILE: &str = "Compile an exported program (.pt2 or .onnx) to an engine (.rgf) for the CPU of this machine.

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
                                                           twice the size, loads by mapping alone
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

Engines are kept in a cache without their weights, and found again by the program without its names and weights: `regraft help cache`.";

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
    /// Take no weights but those of the program
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
    /// 4 bits with a scale for each 32, for products with single rows
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

const RUN: &str = "Run an engine once on arrays from .npy files (numpy.save).

  regraft run model.rgf --input x.npy --output-dir out
  regraft run model.rgf --input ids.npy --input attention_mask=mask.npy --output-dir out

Inputs are given by name (`regraft inspect` lists them) or in the program's order. Dtypes and shapes must be the \
program's. Outputs become out/output_0.npy, out/output_1.npy, ...: all of them, or none when anything fails. \
numpy has no bf16: it is read and written as f32.";

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// An input: NAME=FILE, or FILE for the next input in the program's order
    #[arg(short, long = "input", value_name = "[NAME=]FILE.npy")]
    pub(crate) inputs: Vec<String>,
    /// Where output_0.npy, ... are written; made if its parent is there
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output_dir: PathBuf,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

const REFIT: &str = "Give an engine new weights, adapters, or both, without compiling, and write the result.

  regraft refit model.rgf --weights tuned.safetensors -o tuned.rgf
  regraft refit model.rgf --weights model.safetensors.index.json -o tuned.rgf     sharded
  regraft refit model.rgf --weights head.safetensors --partial -o tuned.rgf       only some keys
  regraft refit model.rgf --weights last.ckpt --key ema -o tuned.rgf              one of several sets
  regraft refit model.rgf --weights old.pt --rename encoder=model.encoder -o tuned.rgf
  regraft refit model.rgf --weights tuned.safetensors -o model.rgf                in place
  regraft refit model.rgf --adapter style.safetensors:0.7 --adapter detail.safetensors:0.3 -o styled.rgf
  regraft refit model.rgf --weights tuned.safetensors --verify inputs.npz -o tuned.rgf
  regraft refit model.rgf --delta tuned.rgd -o tuned.rgf                          see `regraft delta`

The result is bit for bit what compiling with the new weights gives. Every key must fit: missing, unknown and wrongly \
shaped ones are listed all at once, and then nothing is written. A tensor that is the same as before costs one comparison.

Weights are read from .safetensors, their .index.json, .pt2, .onnx, folders of Hugging Face, and state dicts of torch.save \
(.pt, .pth, .bin, .ckpt), also inside of checkpoints of Lightning and others. Names are taken as they are, or by one rule for the \
whole file, which is printed: what wrappers add is left out (module., _orig_mod., _fsdp_wrapped_module.), one prefix is \
added or removed (model., net.), other spellings of layers are read. Two rules that fit are an error that shows both. \
Non-persistent buffers and constants are the program's, and only changed with --allow. Adapters (LoRA, DoRA, \
AdaLoRA, LoHa, LoKr, IA3, full deltas, whole tensors) are read in the namings of PEFT (also its folders), diffusers and \
kohya; they become part of the weights of the engine that is written, computed from the weights of the one that is read. Their \
scale comes from their files, from an adapter_config.json beside them, or from --adapter-alpha.";

#[derive(Args, Debug)]
pub(crate) struct RefitArgs {
    /// The engine
    #[arg(value_name = "MODEL.rgf")]
    pub(crate) engine: PathBuf,
    /// New weights: .safetensors, .safetensors.index.json, .pt2, .pt, .bin or .onnx, or a folder of Hugging Face
    #[arg(short, long, value_name = "WEIGHTS", required_unless_present_any = ["adapter", "delta"])]
    pub(crate) weights: Option<PathBuf>,
    /// The changes of the weights, as `regraft delta` wrote them
    #[arg(long, value_name = "DELTA.rgd", conflicts_with = "weights")]
    pub(crate) delta: Option<PathBuf>,
    /// An adapter with its scale [default: 1]; may be given several times, in any order
    #[arg(short, long, value_name = "FILE[:SCALE]", value_parser = adapter)]
    pub(crate) adapter: Vec<(PathBuf, f64)>,
    /// The alpha that the adapters were trained with, if neither their files nor a configuration states it
    #[arg(long, value_name = "ALPHA", requires = "adapter", value_parser = finite)]
    pub(crate) adapter_alpha: Option<f64>,
    /// The configuration of the adapters (PEFT's adapter_config.json), where it is not beside their files
    #[arg(long, value_name = "CONFIG.json", requires = "adapter")]
    pub(crate) adapter_config: Option<PathBuf>,
    /// The engine to write; may be the same file
    #[arg(short, long, value_name = "NEW.rgf")]
    pub(crate) output: PathBuf,
    /// Where the new engine has its sources [default: as the old one]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(crate) keep_sources: Option<KeepSourcesArg>,
    /// Write what was done to this file, as JSON
    #[arg(long, value_name = "REPORT.json")]
    pub(crate) report: Option<PathBuf>,
    /// Run these inputs through the new engine and through the reference evaluator, and write nothing if they differ; an
    /// .npz with an array per input, by name or in the program's order (slow: seconds to minutes)
    #[arg(long, value_name = "INPUTS.npz")]
    pub(crate) verify: Vec<PathBuf>,
    /// Take the keys that are there and keep the other weights
    #[arg(long, requires = "weights")]
    pub(crate) partial: bool,
    /// Refuse infinite values and NaN, of weights and of adapters
    #[arg(long)]
    pub(crate) reject_non_finite: bool,
    #[command(flatten)]
    pub(crate) names: NameFlags,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn finite(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
    value.ok_or_else(|| "expected a finite number".into())
}

fn adapter(text: &str) -> Result<(PathBuf, f64), String> {
    let scaled = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f64>().ok()?)));
    match scaled {
        Some((_, scale)) if !scale.is_finite() => Err("a scale must be a finite number".into()),
        Some((path, scale)) => Ok((path.into(), scale)),
        None => Ok((text.into(), 1.0)),
    }
}

const BIND: &str = "Give a stripped engine its weights. Needs the engine file and the weights file, nothing else.

  regraft bind plan.rgf --weights model.safetensors -o model.rgf
  regraft bind plan.rgf --weights model.safetensors -o model.rgf --mode frozen

A stripped engine can be bound any number of times, to different weights, unless it was compiled with --identical.";

#[derive(Args, Debug)]
pub(crate) struct BindArgs {
    /// The stripped engine
    #[arg(value_name = "STRIPPED.rgf")]
    pub(crate) engine: PathBuf,
    /// The weights: .safetensors, .safetensors.index.json, .pt2, .pt, .bin or .onnx, or a folder of Hugging Face
    #[arg(short, long, value_name = "WEIGHTS")]
    pub(crate) weights: PathBuf,
    /// The engine to write
    #[arg(short, long, value_name = "BOUND.rgf")]
    pub(crate) output: PathBuf,
    /// What the bound engine holds
    #[arg(long, value_enum, default_value = "refittable")]
    pub(crate) mode: BoundModeArg,
    /// Where a refittable engine has its sources [default: embedded]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(crate) keep_sources: Option<KeepSourcesArg>,
    /// Write what was done to this file, as JSON
    #[arg(long, value_name = "REPORT.json")]
    pub(crate) report: Option<PathBuf>,
    /// Refuse infinite values and NaN
    #[arg(long)]
    pub(crate) reject_non_finite: bool,
    #[command(flatten)]
    pub(crate) names: NameFlags,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

const DIFF: &str = "List the sources and slots that differ between two engines, by name.

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

const INSPECT: &str =
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

const DOCTOR: &str = "Show what this machine has: processor, GPUs, libraries, and what each missing one costs.

  regraft doctor
  regraft doctor --json

Libraries of NVIDIA's are looked for in the folders of REGRAFT_CUDA_PATH, in the nvidia-* wheels of the active Python \
environment, and where the system looks.";

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) common: Common,
}

const COMPLETIONS: &str = "Print a completion script for a shell.

  regraft completions bash > ~/.local/share/bash-completion/completions/regraft
  regraft completions zsh  > ~/.zfunc/_regraft
  regraft completions fish > ~/.config/fish/completions/regraft.fish";

#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_scale_follows_the_last_colon() {
        assert_eq!(adapter("a.safetensors:0.7"), Ok(("a.safetensors".into(), 0.7)));
        assert_eq!(adapter("C:a.safetensors"), Ok(("C:a.safetensors".into(), 1.0)));
        assert!(adapter("a.safetensors:inf").is_err());
    }
}
