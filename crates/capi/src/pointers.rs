//! Pointers of the caller: checked for what can be checked before they are used.

use std::{
    ffi::{CStr, c_char},
    ptr::{self, NonNull},
    slice,
};

use crate::failure::Failure;

/// `count` elements; none when `count` is 0, whatever the pointer is.
///
/// # Safety
/// `pointer` is NULL, or valid for reads of `count` elements for `'a`.
pub(crate) unsafe fn elements<'a, T>(pointer: *const T, count: usize, what: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(Failure::null(what));
    }
    if !pointer.is_aligned() {
        return Err(Failure::argument(format!("{what} is not aligned to {} bytes", align_of::<T>())));
    }
    if count.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(format!("{what}: a count of {count} is larger than memory")));
    }
    // SAFETY: not NULL, aligned and of a possible size; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(pointer, count) })
}

/// A text.
///
/// # Safety
/// `pointer` is NULL, or points to a text that ends with a zero and stays as it is for `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(Failure::null(what));
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| Failure::argument(format!("{what} is not UTF-8: {}", text.to_string_lossy())))
}

/// A place of the caller that a result is written to.
pub(crate) struct Place<T>(NonNull<T>);

impl<T> Place<T> {
    /// # Safety
    /// `pointer` is NULL, or valid for writes as long as the place is used.
    pub(crate) unsafe fn new(pointer: *mut T, what: &str) -> Result<Self, Failure> {
        let place = NonNull::new(pointer).ok_or_else(|| Failure::null(what))?;
        if !place.is_aligned() {
            return Err(Failure::argument(format!("{what} is not aligned to {} bytes", align_of::<T>())));
        }
        Ok(Place(place))
    }

    /// As [`Place::new`], of a result that the caller may not want.
    ///
    /// # Safety
    /// As [`Place::new`].
    pub(crate) unsafe fn optional(pointer: *mut T, what: &str) -> Result<Option<Self>, Failure> {
        // SAFETY: the caller's promise.
        if pointer.is_null() { Ok(None) } else { unsafe { Place::new(pointer, what) }.map(Some) }
    }

    /// Writes the result. What was there is not looked at: it may be uninitialized.
    pub(crate) fn write(&self, value: T) {
        // SAFETY: not NULL, aligned, and valid for writes by the promise of `new`.
        unsafe { self.0.write(value) };
    }
}

impl<T> Place<*mut T> {
    /// A place for a handle, which is NULL until there is one.
    ///
    /// # Safety
    /// As [`Place::new`].
    pub(crate) unsafe fn for_handle(pointer: *mut *mut T, what: &str) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        let place = unsafe { Place::new(pointer, what) }?;
        place.write(ptr::null_mut());
        Ok(place)
    }

    /// Gives `value` to the caller, who frees it by [`free`].
    pub(crate) fn give(&self, value: T) {
        self.write(Box::into_raw(Box::new(value)));
    }
}

/// Frees what [`Place::give`] gave; does nothing for NULL.
///
/// # Safety
/// `handle` is NULL, or was given and not freed, and nobody uses it any more.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: `give` made it with `Box::into_raw`, and the caller frees it once.
        drop(unsafe { Box::from_raw(handle) });
    }
}
