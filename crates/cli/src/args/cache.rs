//! The engine cache: the flags of `compile`, and the command `cache`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Common;

#[derive(Args, Clone, Debug)]
pub(crate) struct CacheFlags {
    /// Where engines are cached [default: REGRAFT_CACHE_DIR, or regraft in the user's cache folder]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// A cache in object storage instead: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX
    #[cfg(feature = "object-cache")]
    #[arg(long, value_name = "URL", conflicts_with_all = ["cache_dir", "no_cache"])]
    pub(crate) cache_url: Option<String>,
    /// Build and tune the engine without the caches, and store nothing in them
    #[arg(long)]
    pub(crate) no_cache: bool,
}

pub(super) const CACHE: &str = "Inspect and clean up the engine cache.

  regraft cache ls                  the engines, the one used last first
  regraft cache info                where it is, how many, how large
  regraft cache gc --limit 200MB    removes those not used for longest
  regraft cache verify              reads all, removes damaged ones
  regraft cache clear               removes all

`regraft compile` stores each engine that it builds, without its weights, and takes it from there when the same program \
comes again: with other weights, under other names, in another file. Programs are the same when their operations, \
attributes, operand order, shapes, ranges and dtypes are; target, tuning and the version of Regraft count too.

The cache is in engines/ below --cache-dir, REGRAFT_CACHE_DIR, or regraft in the user's cache folder. All its files together \
take at most REGRAFT_CACHE_LIMIT [default: 1GB]; the least recently used go first. Any number of processes may share it.";

#[derive(Args, Debug)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) action: CacheAction,
    /// Where engines are cached [default: REGRAFT_CACHE_DIR, or regraft in the user's cache folder]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) cache_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheAction {
    /// List the engines, the one used last first
    Ls,
    /// Show where the cache is, how many engines it has and how large it is
    Info,
    /// Remove leftovers of killed processes, and the least recently used engines until the rest fits
    Gc {
        /// The most that all files may take, such as 200MB [default: the limit of the cache]
        #[arg(long, value_name = "SIZE", value_parser = regraft::parse_size)]
        limit: Option<u64>,
    },
    /// Remove all engines
    Clear,
    /// Read all engines, and remove those that are damaged
    Verify,
}
