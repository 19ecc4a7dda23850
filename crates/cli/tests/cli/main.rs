//! The `regraft` command, driven as a user drives it.

#[cfg(test)]
mod adapters;
#[cfg(test)]
mod cache;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod delta;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod serve;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tuning;
