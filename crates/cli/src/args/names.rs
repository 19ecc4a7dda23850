//! Which weights of a file are meant, and under which names.

use clap::Args;
use regraft::{Constants, OpenOptions, Rename};

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NameFlags {
    /// Take the weights under this key of a checkpoint, such as ema or state_dict
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Read names of the file that begin with FROM as beginning with TO; may be given several times
    #[arg(long, value_name = "FROM=TO", value_parser = str::parse::<Rename>)]
    rename: Vec<Rename>,
    /// Let the file change this non-persistent buffer or constant of the program; may be given several times
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
    /// Ignore names that the engine does not have
    #[arg(long)]
    pub(crate) ignore_unknown: bool,
}

impl NameFlags {
    pub(crate) fn open(&self) -> OpenOptions {
        OpenOptions::new().key(self.key.clone())
    }

    pub(crate) fn renames(&self) -> Vec<Rename> {
        self.rename.clone()
    }

    pub(crate) fn constants(&self) -> Constants {
        match self.allow.is_empty() {
            true => Constants::Keep,
            false => Constants::Change(self.allow.iter().cloned().collect()),
        }
    }
}
