//! Writes `include/regraft.h` from the sources of the C API: `make header`. The file itself is in `python/regraft`, so that it is in
//! the wheel. With `--check` nothing is written, and a header that is not current is an error.

use std::{env, error::Error, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    match run(env::args().nth(1).as_deref() == Some("--check")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(checks: bool) -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml"))?;
    // The other modules are found from this one.
    let builder = cbindgen::Builder::new().with_config(config).with_src(here.join("../src/lib.rs"));
    let mut written = Vec::new();
    builder.generate()?.write(&mut written);
    let header = here.join("../include/regraft.h");
    if !checks {
        return Ok(fs::write(header, written)?);
    }
    match fs::read(&header)? == written {
        true => Ok(()),
        false => Err("crates/capi/include/regraft.h is not current: run `make header`, then read the diff".into()),
    }
}
