//! Requests over HTTP: the first byte says which part of one. Bodies that run models, in JSON with bytes behind it; paths and
//! queries; bodies that say what to stage.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use regraft_server::fuzzing::{self, Ports};

static PORTS: LazyLock<Ports> = LazyLock::new(|| Ports::of(regraft_fuzz::PORTS));

fuzz_target!(|bytes: &[u8]| {
    let Some((&which, rest)) = bytes.split_first() else { return };
    match which % 4 {
        0 => _ = fuzzing::infer(rest, None, &PORTS),
        1 => {
            let Some((len, rest)) = rest.split_first_chunk::<2>() else { return };
            _ = fuzzing::infer(rest, Some(usize::from(u16::from_le_bytes(*len))), &PORTS);
        }
        2 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            let (path, query) = text.split_once('?').unwrap_or((text, ""));
            _ = fuzzing::target(path, query);
        }
        _ => _ = fuzzing::stage(rest),
    }
});
