//! Files that appear whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use regraft_tensor::Explanation;

/// Why a file could not be written; names the file. What was there before is still there.
///
/// ```
/// use regraft_engine::atomic_file::AtomicFile;
///
/// let error = AtomicFile::create("no/such/folder/model.rgf").unwrap_err();
/// assert!(error.path().ends_with("model.rgf"));
/// assert_eq!(error.io_error().kind(), std::io::ErrorKind::NotFound);
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{}", self.explained())]
pub struct WriteError {
    path: PathBuf,
    error: io::Error,
}

impl WriteError {
    /// The file that was to be written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The error of the system.
    pub fn io_error(&self) -> &io::Error {
        &self.error
    }

    /// In parts.
    pub fn explained(&self) -> Explanation {
        let what = format!("could not write the file: {}", self.error);
        Explanation { help: advice(&self.error).map(str::to_owned), ..Explanation::new(what) }
            .about(self.path.display())
    }

    /// The error of the system, taken out.
    pub fn into_io_error(self) -> io::Error {
        self.error
    }
}

/// What to do about a failed write.
pub(crate) fn advice(error: &io::Error) -> Option<&'static str> {
    Some(match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space or write to another disk; nothing half-written was left behind"
        }
        io::ErrorKind::NotFound => "create its directory first",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "write to a directory where you may create files"
        }
        io::ErrorKind::IsADirectory => "give the name of a file inside it",
        _ => return None,
    })
}

/// A file under construction: written under a temporary name beside its target and renamed over it by
/// [`AtomicFile::commit`].
///
/// Dropping it without a commit removes the temporary file. Readers of the target, those that map it included, keep
/// the old file until they open it again. A target that is a symbolic link is replaced itself, not what it points at.
/// Writes are buffered; [`AtomicFile::write`] is the short way for a file that is written in one go.
///
/// ```
/// use std::io::Write as _;
///
/// use regraft_engine::atomic_file::AtomicFile;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("notes.txt");
/// let mut file = AtomicFile::create(&path)?;
/// file.write_all(b"all of it, or nothing")?;
/// assert!(!path.exists());
/// file.commit()?;
/// assert!(path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AtomicFile {
    // Fields drop in this order: the file is closed before it is removed.
    file: BufWriter<File>,
    temp: TempFile,
    target: PathBuf,
}

impl AtomicFile {
    /// Begins a file that will be at `target`, in whose directory the temporary file lies meanwhile.
    ///
    /// # Errors
    /// When the directory cannot be written to, or `target` is something other than a regular file.
    pub fn create(target: impl Into<PathBuf>) -> Result<Self, WriteError> {
        let target = target.into();
        match check_target(&target).and_then(|()| create_temp(&target)) {
            Ok((file, temp)) => Ok(AtomicFile { file: BufWriter::new(file), temp, target }),
            Err(error) => Err(WriteError { path: target, error }),
        }
    }

    /// Writes the file at `target` with `body` and commits it; leaves nothing behind when `body` fails.
    ///
    /// # Errors
    /// Those of [`AtomicFile::create`], of `body` and of [`AtomicFile::commit`]; they name the file.
    pub fn write(
        target: impl Into<PathBuf>,
        body: impl FnOnce(&mut AtomicFile) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let mut file = AtomicFile::create(target)?;
        match body(&mut file) {
            Ok(()) => file.commit(),
            Err(error) => Err(WriteError { path: file.target, error }),
        }
    }

    /// Where the file will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Brings the bytes to the disk and the file to its place.
    ///
    /// # Errors
    /// When the disk is full or the target cannot be replaced; the temporary file is gone then.
    pub fn commit(self) -> Result<(), WriteError> {
        let AtomicFile { file, temp, target } = self;
        let placed = file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| {
            file.sync_all()?;
            drop(file);
            temp.rename_to(&target)
        });
        match placed {
            Ok(()) => {
                sync_directory(&target);
                Ok(())
            }
            Err(error) => Err(WriteError { path: target, error }),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// A file that is removed when this is dropped.
#[derive(Debug)]
struct TempFile {
    path: PathBuf,
    keep: bool,
}

impl TempFile {
    fn rename_to(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.keep {
            // There is nobody to tell; the error that led here is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Refuses what a rename must not replace: a directory, a device, a pipe.
fn check_target(target: &Path) -> io::Result<()> {
    match fs::metadata(target) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a device or a pipe; give the name of a file"))
        }
        // What is wrong with a path that has no metadata shows when the temporary file is created.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn create_temp(target: &Path) -> io::Result<(File, TempFile)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in the name of a file");
    let name = target.file_name().ok_or_else(no_name)?;
    loop {
        let path =
            target.with_file_name(temp_name(name.to_string_lossy().as_ref(), COUNT.fetch_add(1, Ordering::Relaxed)));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, TempFile { path, keep: false })),
            // Left by a killed process that had our id; not ours to judge.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// `.NAME.tmp-PID-N`, with a long name cut so that the whole stays a legal file name.
fn temp_name(name: &str, count: u64) -> OsString {
    let name: String = name.chars().take(48).collect();
    format!(".{name}.tmp-{}-{count}", process::id()).into()
}

/// Makes a rename survive a power cut where the system can. The new file is in place and whole either way, so a
/// directory that cannot be synced is not an error.
fn sync_directory(target: &Path) {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(parent).and_then(|directory| directory.sync_all());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_commit_replaces_the_target_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.txt");
        fs::write(&target, "old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"new bytes").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"NEW").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"old", "the target changes at the commit only");
        assert_eq!(names(dir.path()).len(), 2);
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"NEW bytes");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_drop_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.txt");
        fs::write(&target, "old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_failing_body_leaves_nothing_and_its_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.txt");
        let error = AtomicFile::write(&target, |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(error.io_error().kind(), io::ErrorKind::StorageFull);
        let text = error.to_string();
        assert!(text.contains("a.txt: could not write the file: ") && text.contains("help: free some space"), "{text}");
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn two_writers_of_one_target_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.txt");
        let mut first = AtomicFile::create(&target).unwrap();
        let mut second = AtomicFile::create(&target).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        second.commit().unwrap();
        first.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"first");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn targets_that_cannot_be_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path| AtomicFile::create(path).unwrap_err();
        let missing = refused(&dir.path().join("no/such/a.txt"));
        assert_eq!(missing.io_error().kind(), io::ErrorKind::NotFound);
        assert!(missing.to_string().contains("create its directory first"), "{missing}");
        assert_eq!(refused(dir.path()).io_error().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(refused(Path::new("")).io_error().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_not_replaced() {
        let error = AtomicFile::create("/dev/null").unwrap_err();
        assert!(error.to_string().contains("device or a pipe"), "{error}");
    }

    #[test]
    fn a_name_of_the_greatest_length_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x".repeat(255));
        AtomicFile::write(&target, |file| file.write_all(b"1")).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"1");
    }
}
