//! The `regraft` command, driven as a user drives it.

mod commands;
mod scenarios;
mod support;
