//! Serves models over the network, in the open inference protocol (KServe's version 2), and changes their weights while they
//! serve.
//!
//! ```no_run
//! use regraft_server::{ModelOptions, Server, ServerOptions, asked_to_stop};
//!
//! let model = <regraft::Model as regraft::ModelExt>::load("model.rgf")?;
//! let mut server = Server::new(ServerOptions::default())?;
//! server.add("model", model, ModelOptions::default())?;
//! server.run(|address, _| println!("listening on {address}"), asked_to_stop())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A request passes these modules: `server`, `tasks` and `gathering` (connections), `http` and `grpc` (rights, bodies), `request` and `numbers` (tensors), `queue`
//! and `run` (batches), `reply`. Weights: `weights` (stage, publish, roll back), `generations` (what they are called), `variants`
//! and `adapters` (adapters that requests name), `background` (the threads for all this). What is seen of all this: `metrics` and `traces`.
#![forbid(unsafe_code)]

mod adapters;
mod auth;
mod background;
mod batching;
mod body;
mod dtype;
mod error;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gathering;
mod generations;
mod grpc;
mod http;
mod metrics;
mod numbers;
mod opening;
mod options;
mod proto;
mod queue;
mod reply;
mod request;
mod route;
mod run;
mod served;
mod server;
mod signature;
mod tasks;
mod tls;
mod traces;
mod upload;
mod variants;
mod weights;

pub use self::{
    auth::Tokens,
    error::ServeError,
    options::{ModelOptions, ServerOptions, TraceOptions},
    server::{ServedModel, Server, asked_to_stop},
};
