//! Calls of gRPC that run models: the frame, the message, and the tensors in it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use regraft_server::fuzzing::{self, Ports};

static PORTS: LazyLock<Ports> = LazyLock::new(|| Ports::of(regraft_fuzz::PORTS));

fuzz_target!(|bytes: &[u8]| {
    // Half with a frame that is right, to get behind it.
    match bytes.split_first() {
        Some((first, message)) if first % 2 == 0 => {
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
            _ = fuzzing::infer_grpc(&[&[0][..], &length, message].concat(), &PORTS);
        }
        Some((_, framed)) => _ = fuzzing::infer_grpc(framed, &PORTS),
        None => {}
    }
});
