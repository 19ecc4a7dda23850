//! What fuzz targets call: the readers of requests, without a server.
#![allow(missing_docs)]

use bytes::Bytes;

use crate::{grpc, http, proto::ModelInferRequest, request, route::Route, signature::Signature, weights::StageRequest};

/// What a model takes and gives.
pub struct Ports(Signature);

impl Ports {
    /// Of a program in text form.
    ///
    /// # Panics
    /// When it is none.
    pub fn of(program: &str) -> Ports {
        Ports(Signature::of_graph(&regraft::ir::text::parse(program).expect("a program")))
    }
}

/// A body of HTTP: whether it is taken.
pub fn infer(body: &[u8], json_len: Option<usize>, ports: &Ports) -> bool {
    request::parse(body, json_len, &ports.0).is_ok()
}

/// A body of gRPC: whether it is taken.
pub fn infer_grpc(body: &[u8], ports: &Ports) -> bool {
    let message = grpc::unframed(Bytes::copy_from_slice(body)).and_then(grpc::decoded::<ModelInferRequest>);
    message.and_then(|message| grpc::read(&message, &ports.0)).is_ok()
}

/// A path and a query.
pub fn target(path: &str, query: &str) -> bool {
    let routes = [hyper::Method::GET, hyper::Method::POST, hyper::Method::DELETE].map(|m| Route::of(&m, path).is_ok());
    let is_query = http::of_query(query).is_ok();
    is_query && routes.contains(&true)
}

/// A body that says what to stage.
pub fn stage(body: &[u8]) -> bool {
    serde_json::from_slice::<StageRequest>(body).is_ok()
}
