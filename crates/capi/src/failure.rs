//! What goes wrong, for callers in C: a status, and a message for each thread.

use std::{
    any::Any,
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use regraft::RuntimeErrorKind;

/// How a call ended. When it is not REGRAFT_STATUS_OK, nothing was changed, and regraft_last_error says what happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegraftStatus {
    /// The call did what it was asked to do.
    Ok = 0,
    /// An argument is not valid: a null pointer, text that is not UTF-8, an unknown device or dtype.
    Argument = 1,
    /// An engine file cannot be read or written, is damaged, or was built for another machine.
    Engine = 2,
    /// Weights or adapters cannot be read or do not fit, or the engine is frozen.
    Weights = 3,
    /// The inputs are not the ones that the program takes, or the model has no weights yet.
    Inputs = 4,
    /// Any other failure of a run, a refit or a device, such as missing memory.
    Failed = 5,
    /// A bug in Regraft. Please report it.
    Panic = 6,
}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// The message of the last call in this thread that failed: what happened, where, and what to do about it. NULL when no call has
/// failed. The text belongs to the library and is valid until the next call in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn regraft_last_error() -> *const c_char {
    let message = |last: &RefCell<Option<CString>>| last.borrow().as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // A thread that is ending has no message any more.
    LAST.try_with(message).unwrap_or(ptr::null())
}

/// A status with its message.
pub(crate) struct Failure {
    status: RegraftStatus,
    message: String,
}

impl Failure {
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Failure { status: RegraftStatus::Argument, message: message.into() }
    }

    pub(crate) fn null(what: &str) -> Self {
        Failure::argument(format!("{what} is NULL"))
    }
}

impl<E: Into<regraft::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Failure { status: status_of(&error), message: error.to_string() }
    }
}

fn status_of(error: &regraft::Error) -> RegraftStatus {
    use regraft::Error;
    match error {
        Error::Engine(_) | Error::Write(_) => RegraftStatus::Engine,
        Error::Checkpoint(_) | Error::Import(_) | Error::Weights(_) | Error::Adapter(_) => RegraftStatus::Weights,
        Error::Inputs(_) => RegraftStatus::Inputs,
        Error::Runtime(error) => match error.kind() {
            RuntimeErrorKind::Weights(_)
            | RuntimeErrorKind::Adapter(_)
            | RuntimeErrorKind::AdapterTwice(_)
            | RuntimeErrorKind::Frozen => RegraftStatus::Weights,
            RuntimeErrorKind::Input(_) | RuntimeErrorKind::NotBound => RegraftStatus::Inputs,
            RuntimeErrorKind::Engine(_) | RuntimeErrorKind::DamagedFile(_) => RegraftStatus::Engine,
            _ => RegraftStatus::Failed,
        },
        _ => RegraftStatus::Failed,
    }
}

/// Does `work` for a caller in C: errors and panics become a status with a message.
pub(crate) fn guarded(work: impl FnOnce() -> Result<(), Failure>) -> RegraftStatus {
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return RegraftStatus::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure { status: RegraftStatus::Panic, message: message_of(&*panic) },
    };
    // Names of files and tensors can contain zeros, and a C string ends at the first.
    let message = CString::new(failure.message.replace('\0', "\\0")).unwrap_or_default();
    // A thread that is ending gets the status alone.
    let _ = LAST.try_with(|last| *last.borrow_mut() = Some(message));
    failure.status
}

/// Does `work` for a caller that gets no errors; `otherwise` is the result when it panics.
pub(crate) fn quiet<T>(otherwise: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(otherwise)
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a bug in Regraft: {}", text.unwrap_or("a panic without a message"))
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last() -> String {
        let message = regraft_last_error();
        assert!(!message.is_null());
        // SAFETY: it is not null, and no other call of this thread comes before it is copied.
        unsafe { CStr::from_ptr(message) }.to_str().expect("UTF-8").to_owned()
    }

    #[test]
    fn failures_and_panics_become_a_status_and_a_message_of_the_thread() {
        std::thread::spawn(|| assert!(regraft_last_error().is_null())).join().expect("no panic");
        assert_eq!(guarded(|| Ok(())), RegraftStatus::Ok);
        assert_eq!(guarded(|| Err(Failure::argument("a\0b"))), RegraftStatus::Argument);
        assert_eq!(last(), "a\\0b");
        let number = 7;
        assert_eq!(guarded(|| panic!("number {number}")), RegraftStatus::Panic);
        assert_eq!(last(), "a bug in Regraft: number 7");
        assert_eq!(quiet(3, || panic!("not told")), 3);
        std::thread::spawn(|| assert!(regraft_last_error().is_null())).join().expect("no panic");
    }
}
