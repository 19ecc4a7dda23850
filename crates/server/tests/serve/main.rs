//! A server as its clients see it: requests byte by byte, over a socket, against programs of the conformance suite.

mod grpc;
mod infer;
mod limits;
mod support;
mod weights;
