//! The `regraft` command: compile, run, refit, bind, inspect and bench engines.
//!
//! One file per command under `commands/`; what they share is the arguments (`args`), errors as the user sees them
//! (`failure`), everything that is printed (`output`) and arrays in files (`npy`).
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod npy;
mod output;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Cli, output::Output};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(output::report_bug));
    let command = Cli::parse().command;
    let common = command.common();
    let mut out = Output::new(common.json, common.verbose);
    match commands::run(&command, &mut out).and_then(|()| out.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(common.json, common.verbose > 0);
            failure.exit_code()
        }
    }
}
