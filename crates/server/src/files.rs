//! Names that come from requests, and the files that they may lead to.

use std::path::{Component, Path, PathBuf};

use crate::error::{Kind, Refusal};

/// Whether a name can stand in a path of a URL and of a file: letters, digits, `.`, `_` and `-`, not beginning with a dot.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(is_plain)
}

/// The file or folder that `name` means below `root`: nothing outside of it, whatever `..` and links say.
///
/// # Errors
/// When there is no root, or no such file in it.
pub(crate) fn below(root: Option<&Path>, name: &str) -> Result<PathBuf, Refusal> {
    let Some(root) = root else {
        return Err(Refusal::new(Kind::Forbidden, "the server has no folder of weights to read from")
            .help("start it with --weights-root DIR, or send the weights in the body"));
    };
    let relative = Path::new(name);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) || name.contains('\0') {
        return Err(Refusal::bad("`file` must be a path below the folder of weights, without `..`"));
    }
    let missing = || Refusal::new(Kind::NotFound, format!("there is no file `{name}` in the folder of weights"));
    let root = root.canonicalize().map_err(|_| missing())?;
    let path = root.join(relative).canonicalize().map_err(|_| missing())?;
    let metadata = path.metadata().map_err(|_| missing())?;
    // A link that leads out is told as one that is not there.
    match path.starts_with(&root) && (metadata.is_file() || metadata.is_dir()) {
        true => Ok(path),
        false => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["bert", "bert-2.1_b"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", ".a", "a/b", "a b", "é", "a\0", &"a".repeat(129)] {
            assert!(!is_plain_name(name), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn nothing_outside_of_the_root_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/a"), "").unwrap();
        fs::write(dir.path().join("secret"), "").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("leads-out")).unwrap();
        std::os::unix::fs::symlink("sub/a", root.join("leads-in")).unwrap();
        for (name, ok) in [
            ("sub/a", true),
            ("sub", true),
            ("leads-in", true),
            ("leads-out", false),
            ("../secret", false),
            ("sub/../../secret", false),
            ("/etc/hostname", false),
            ("none", false),
            ("a\0b", false),
        ] {
            assert_eq!(below(Some(&root), name).is_ok(), ok, "{name}");
        }
        assert_eq!(below(None, "sub/a").unwrap_err().kind, Kind::Forbidden);
    }
}
