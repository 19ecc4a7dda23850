//! Regraft: cli.
