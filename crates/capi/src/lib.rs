//! The C API: load, run and refit engines, change adapters, save. The header is `include/regraft.h`, which `header/` writes from
//! this crate; `examples/` has a program in C and one in C++.
//!
//! Every function that can fail returns a [`RegraftStatus`]; [`regraft_last_error`] has the message. A panic is caught and becomes
//! [`RegraftStatus::Panic`]. Functions may be called from any thread, and a model may be run and refitted from several at once.
//! Null pointers, lengths, alignment and texts are checked; whether a pointer leads to what it claims only the caller can know.
// The C API is raw pointers: each function says what it asks of them.
#![allow(unsafe_code)]

mod failure;
mod model;
mod pointers;
mod tensor;
#[cfg(test)]
mod tests;

use std::ffi::c_char;

pub use self::{
    failure::{RegraftStatus, regraft_last_error},
    model::{
        RegraftAdapter, RegraftModel, RegraftRefit, regraft_model_free, regraft_model_input_count,
        regraft_model_input_name, regraft_model_load, regraft_model_output_count, regraft_model_output_name,
        regraft_model_refit, regraft_model_refit_tensors, regraft_model_run, regraft_model_save,
        regraft_model_set_adapters,
    },
    tensor::{RegraftOutputs, RegraftTensor, regraft_outputs_count, regraft_outputs_free, regraft_outputs_get},
};

/// The version of the library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn regraft_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
