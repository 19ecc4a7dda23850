//! What the command line may say. The texts here are what `--help` teaches.

mod cache;
mod compile;
mod delta;
mod distribute;
mod inspect;
mod measure;
mod names;
mod refit;
mod run;
mod serve;
mod tune;

use std::{num::NonZeroUsize, sync::Arc};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use regraft::{Device, DeviceName, Threads};

pub(crate) use self::{
    cache::{CacheAction, CacheArgs, CacheFlags},
    compile::{CompileArgs, KeepSourcesArg, ModeArg},
    delta::DeltaArgs,
    distribute::{CheckArgs, StripArgs},
    inspect::{DiffArgs, InspectArgs},
    measure::{BenchArgs, ProfileArgs},
    names::NameFlags,
    refit::{BindArgs, RefitArgs},
    run::RunArgs,
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
#[command(name = "regraft", bin_name = "regraft", version, about = "Compile a network once, and replace its weights without compiling again", long_about = ABOUT)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compile an exported program (.pt2 or .onnx) to an engine (.rgf)
    #[command(long_about = compile::COMPILE)]
    Compile(CompileArgs),
    /// Run an engine once on arrays from .npy files
    #[command(long_about = run::RUN)]
    Run(RunArgs),
    /// Give an engine new weights; no compiling
    #[command(long_about = refit::REFIT)]
    Refit(RefitArgs),
    /// Give a stripped engine its weights
    #[command(long_about = refit::BIND)]
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
    #[command(long_about = inspect::DIFF)]
    Diff(DiffArgs),
    /// Show the inputs, weights and kernels of an engine; runs nothing
    #[command(long_about = inspect::INSPECT)]
    Inspect(InspectArgs),
    /// Measure latency, refit time and a plain copy of the same bytes
    #[command(long_about = measure::BENCH)]
    Bench(BenchArgs),
    /// Show where the time of a run goes, node by node, next to what this machine could do
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
}
