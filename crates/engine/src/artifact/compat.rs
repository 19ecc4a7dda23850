//! What must fit before the rest of a file is looked at.

use regraft_backend::Target;
use serde::{Deserialize, Serialize};

use crate::{EngineErrorKind, Mode};

/// The version of Regraft: kernels and pack formats are those of one version.
pub(super) const PRODUCT: &str = env!("CARGO_PKG_VERSION");

/// The section `compat`. Fields are only ever added to it, so that any version can tell why it cannot read a file.
#[derive(Serialize, Deserialize)]
pub(super) struct Compat {
    /// The version of Regraft that wrote the file.
    pub(super) product: String,
    pub(super) target: Target,
    pub(super) mode: Mode,
}

/// Refuses engines of versions whose kernels may be others: a patch release keeps kernels and pack formats.
pub(super) fn check_product(found: &str) -> Result<(), EngineErrorKind> {
    if release(found) == release(PRODUCT) {
        return Ok(());
    }
    Err(EngineErrorKind::Product { expected: PRODUCT, found: found.to_owned() })
}

/// `0.1` of `0.1.7`.
fn release(version: &str) -> Option<&str> {
    version.rsplit_once('.').map(|(release, _patch)| release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patch_releases_read_each_other() {
        let (major, minor) = release(PRODUCT).and_then(|r| r.split_once('.')).expect("a version has three parts");
        assert!(check_product(&format!("{major}.{minor}.999")).is_ok());
        for other in ["", "1", &format!("{major}.{minor}9.0"), &format!("{major}9.{minor}.0")] {
            assert!(check_product(other).is_err(), "{other}");
        }
    }
}
