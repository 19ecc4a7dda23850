//! The native module `regraft._regraft`: what the Python package needs of Regraft, and no more. `_regraft.pyi` in the package
//! has its types; the package gives them their meaning.
//!
//! Everything that takes longer than a few microseconds runs without the interpreter's lock. Errors are the exceptions of
//! `regraft.errors`.
//!
//! `unsafe` is confined to [`memory`], which passes the memory of tensors in, [`exchange`], which asks where it is, [`lent`], which
//! passes that of a GPU in, [`dlpack`], which passes it out, and [`watch`], which looks at it between calls.
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

mod array;
mod cache;
mod compile;
mod dlpack;
mod doctor;
mod error;
mod exchange;
mod exit;
mod lent;
mod memory;
mod model;
mod names;
mod program;
mod refit;
mod watch;
mod weights;

use pyo3::prelude::*;

#[pymodule]
mod _regraft {
    #[pymodule_export]
    use crate::{
        array::Array,
        cache::DiskCache,
        compile::compile,
        doctor::doctor,
        exit::before_exit,
        model::{Model, Session, slot_bytes_of},
        names::match_names,
        program::{Program, SourceInfo, is_known},
        refit::{Adapter, ReportNames, Staged, adapter_for, publish_together},
        watch::Watch,
        weights::StateDict,
    };

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
