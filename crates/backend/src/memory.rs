//! Memory of devices, and parts of it.
//!
//! A [`Region`] is an address with a length: only its own device knows what the address means. Where it comes from makes sure
//! that it is valid: it borrows from a [`Memory`] or from bytes of the host.
#![allow(unsafe_code)]

use std::{fmt, marker::PhantomData, ops::Range};

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// Slots: lives as long as generations do, and is used again by later ones.
    Slot,
    /// Scratch memory and states of a session.
    Arena,
}

/// Memory of a device. Dropping it gives it back.
///
/// # Safety
/// `address` and `len` never change; the bytes are valid, and nobody else's, until the memory is dropped. Where
/// [`Memory::is_host`], the address is a pointer of this process, aligned to 64 bytes, and the bytes are initialized.
/// [`Memory::is_writable`] is true only where a mutable borrow of the memory is the only way to its bytes.
pub unsafe trait Memory: fmt::Debug + Send + Sync {
    /// Address of the first byte, as the device knows it.
    fn address(&self) -> u64;

    /// Bytes.
    fn len(&self) -> usize;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the host can address it.
    fn is_host(&self) -> bool;

    /// Whether it may be written: not where it is mapped from a file.
    fn is_writable(&self) -> bool {
        true
    }
}

/// Where no bytes are: aligned as all memory is, so that they are a slice of any elements.
const NO_BYTES: usize = 64;

/// A part of memory, to be read.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    address: u64,
    len: usize,
    host: bool,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Region<'a> {
    /// All of a memory.
    pub fn of(memory: &'a dyn Memory) -> Self {
        Region { address: memory.address(), len: memory.len(), host: memory.is_host(), memory: PhantomData }
    }

    /// Bytes of the host: for devices that read those.
    pub fn of_host(bytes: &'a [u8]) -> Self {
        Region { address: bytes.as_ptr() as u64, len: bytes.len(), host: true, memory: PhantomData }
    }

    /// The bytes `range` of this part.
    ///
    /// # Panics
    /// When it reaches outside.
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} lies outside of {} bytes", self.len);
        Region { address: self.address + range.start as u64, len: range.len(), ..self }
    }

    /// Address of the first byte, as the device knows it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    ///
    /// # Panics
    /// When the host cannot address them.
    pub fn host_bytes(&self) -> &'a [u8] {
        assert!(self.host, "memory of a device is not addressed from the host");
        if self.len == 0 {
            // SAFETY: no bytes are read through it; it is not null.
            return unsafe { std::slice::from_raw_parts(NO_BYTES as *const u8, 0) };
        }
        // SAFETY: the region borrows, for 'a, host bytes or a `Memory` whose contract says that its bytes are valid,
        // initialized, and written by nobody else; `part` stays inside.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.len) }
    }
}

/// Memory of a device that another library lends for the work of a run, such as a tensor of PyTorch.
///
/// ```
/// use regraft_backend::Lent;
///
/// /// Two rows of eight floats in memory that another library has at `address` of the device.
/// ///
/// /// # Safety
/// /// As [`Lent::new`] says.
/// unsafe fn rows(address: u64) -> Lent {
///     // SAFETY: the caller's.
///     unsafe { Lent::new(address, 2 * 8 * size_of::<f32>()) }
/// }
///
/// // SAFETY: nothing reads it.
/// let rows = unsafe { rows(0x7f00_0000_0000) };
/// assert_eq!(rows.len(), 64);
/// ```
#[derive(Debug)]
pub struct Lent {
    address: u64,
    len: usize,
}

impl Lent {
    /// `len` bytes at an address of the device.
    ///
    /// # Safety
    /// The bytes are memory of the device that this is given to, until the work that it is given to is over on the device,
    /// which may be long after the call that begins it: the lender orders what comes next behind that work, through the
    /// [queue](crate::ForeignQueue) that is given beside it. Nobody else writes to them until then, and to those that the work
    /// writes nobody else has access.
    pub unsafe fn new(address: u64, len: usize) -> Lent {
        Lent { address, len }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, to be read.
    pub fn region(&self) -> Region<'_> {
        Region { address: self.address, len: self.len, host: false, memory: PhantomData }
    }

    /// The bytes, to be written.
    pub fn region_mut(&mut self) -> RegionMut<'_> {
        RegionMut { address: self.address, len: self.len, host: false, memory: PhantomData }
    }
}

/// A part of memory, to be written. There is no other region of the same bytes.
#[derive(Debug)]
pub struct RegionMut<'a> {
    address: u64,
    len: usize,
    host: bool,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> RegionMut<'a> {
    /// All of a memory.
    ///
    /// # Panics
    /// When it is not writable.
    pub fn of(memory: &'a mut dyn Memory) -> Self {
        assert!(memory.is_writable(), "memory that is mapped from a file is not written");
        RegionMut { address: memory.address(), len: memory.len(), host: memory.is_host(), memory: PhantomData }
    }

    /// Bytes of the host: for devices that write those.
    pub fn of_host(bytes: &'a mut [u8]) -> Self {
        RegionMut { address: bytes.as_mut_ptr() as u64, len: bytes.len(), host: true, memory: PhantomData }
    }

    /// The bytes `range` of this part.
    ///
    /// # Panics
    /// When it reaches outside.
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} lies outside of {} bytes", self.len);
        RegionMut { address: self.address + range.start as u64, len: range.len(), ..self }
    }

    /// Another region of the same bytes.
    ///
    /// # Safety
    /// The two are not used at once, or for different bytes.
    pub(crate) unsafe fn again(&self) -> RegionMut<'a> {
        RegionMut { address: self.address, len: self.len, host: self.host, memory: PhantomData }
    }

    /// The same bytes, to be read from now on.
    pub fn into_shared(self) -> Region<'a> {
        Region { address: self.address, len: self.len, host: self.host, memory: PhantomData }
    }

    /// The same bytes, to be read while this is borrowed.
    pub fn shared(&self) -> Region<'_> {
        Region { address: self.address, len: self.len, host: self.host, memory: PhantomData }
    }

    /// The same bytes, reborrowed.
    pub fn reborrow(&mut self) -> RegionMut<'_> {
        RegionMut { address: self.address, len: self.len, host: self.host, memory: PhantomData }
    }

    /// Address of the first byte, as the device knows it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    ///
    /// # Panics
    /// When the host cannot address them.
    pub fn host_bytes(&mut self) -> &mut [u8] {
        assert!(self.host, "memory of a device is not addressed from the host");
        if self.len == 0 {
            // SAFETY: no bytes are read or written through it; it is not null.
            return unsafe { std::slice::from_raw_parts_mut(NO_BYTES as *mut u8, 0) };
        }
        // SAFETY: the region borrows, exclusively for 'a, host bytes or a writable `Memory`, whose contract says that the
        // bytes are valid, initialized and reached in no other way; `part` stays inside, and `again` leaves it to its
        // callers that no two are used for the same bytes.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_are_aligned_for_any_elements() {
        let mut none: [u8; 0] = [];
        assert!((Region::of_host(&none).host_bytes().as_ptr() as usize).is_multiple_of(64));
        assert!((RegionMut::of_host(&mut none).host_bytes().as_ptr() as usize).is_multiple_of(64));
    }
}
