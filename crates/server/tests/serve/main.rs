//! A server as its clients see it: requests byte by byte, over a socket, against programs of the conformance suite.

#[cfg(test)]
mod grpc;
#[cfg(test)]
mod infer;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod support;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod weights;
