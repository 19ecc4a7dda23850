//! New weights for engines: `refit` and `bind`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use regraft::Mode;

use super::{Common, KeepSourcesArg, NameFlags, ThreadArgs};

pub(super) const REFIT: &str = "Give an engine new weights, adapters, or both, without compiling, and write the result.

  regraft refit model.rgf --weights tuned.safetensors -o tuned.rgf
  regraft refit model.rgf --weights model.safetensors.index.json -o tuned.rgf     sharded
  regraft refit model.rgf --weights head.safetensors --partial -o tuned.rgf       only some keys
  regraft refit model.rgf --weights last.ckpt --key ema -o tuned.rgf              one of several sets
  regraft refit model.rgf --weights old.pt --rename encoder=model.encoder -o tuned.rgf
  regraft refit model.rgf --weights tuned.safetensors -o model.rgf                in place
  regraft refit model.rgf --adapter style.safetensors:0.7 --adapter detail.safetensors:0.3 -o styled.rgf
  regraft refit model.rgf --weights tuned.safetensors --verify inputs.npz -o tuned.rgf
  regraft refit model.rgf --delta tuned.rgd -o tuned.rgf                          see `regraft delta`

The result is bit for bit what compiling with the new weights gives. Every key must fit: all missing, \
unknown and wrongly shaped keys are listed at once, and nothing is written. A tensor that is the same as before costs one comparison.

Weights are read from .safetensors, their .index.json, .pt2, .onnx, folders of Hugging Face, and state dicts of torch.save \
(.pt, .pth, .bin, .ckpt), also inside checkpoints of Lightning and others. Names are taken as they are, or by one rule for the \
whole file, which is printed: what wrappers add is left out (module., _orig_mod., _fsdp_wrapped_module.), one prefix is \
added or removed (model., net.), other spellings of layers are read. Two rules that fit are an error that shows both. \
Non-persistent buffers and constants belong to the program and change only with --allow. Adapters (LoRA, DoRA, \
AdaLoRA, LoHa, LoKr, IA3, full deltas, whole tensors) are read in the namings of PEFT (also its folders), diffusers and \
kohya; they are merged into the weights of the new engine, starting from the weights of the old one. Their \
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
    /// Where the new engine has its sources [default: where the old one has them]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(crate) keep_sources: Option<KeepSourcesArg>,
    /// Write what was done to this file, as JSON
    #[arg(long, value_name = "REPORT.json")]
    pub(crate) report: Option<PathBuf>,
    /// Run these inputs through the new engine and through the reference evaluator, and write nothing if they differ; an
    /// .npz with an array per input, by name or in the program's order (slow: seconds to minutes)
    #[arg(long, value_name = "INPUTS.npz")]
    pub(crate) verify: Vec<PathBuf>,
    /// Replace only the weights that the file has, and keep the others
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

pub(super) const BIND: &str = "Give a stripped engine its weights. Needs only the engine file and the weights file.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_follows_the_last_colon() {
        assert_eq!(adapter("a.safetensors:0.7"), Ok(("a.safetensors".into(), 0.7)));
        assert_eq!(adapter("C:a.safetensors"), Ok(("C:a.safetensors".into(), 1.0)));
        assert!(adapter("a.safetensors:inf").is_err());
    }
}
