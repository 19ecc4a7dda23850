//! Bytes in memory of a device that belong to another owner.
#![allow(unsafe_code)]

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use crate::{AlignedVec, ErrorKind, TensorError};

/// Copies the bytes to the host; says what went wrong.
type Fetch = dyn Fn() -> Result<AlignedVec, String> + Send + Sync;

/// Bytes in memory of a device, of another owner who may write to them again later, as [`BorrowedBytes`](crate::BorrowedBytes)
/// are on the host. A device reads them where they are; for the host they are copied when they are first asked for.
///
/// ```
/// use regraft_tensor::{AlignedVec, Buffer, DType, RemoteBytes, Tensor};
///
/// // Stands for a copy from a GPU, which can fail.
/// let fetch = || Ok(AlignedVec::from_slice(&[1.0f32, 2.0]));
/// // SAFETY: the address is not used: no device is given the tensor.
/// let bytes = unsafe { RemoteBytes::new("cuda:0".into(), 0x7f00_0000_0000, 8, Box::new(fetch)) };
/// assert_eq!(bytes.on("cuda:1"), None);
///
/// let tensor = Tensor::new(DType::F32, vec![2], Buffer::Remote(bytes))?;
/// assert_eq!(tensor.as_slice::<f32>(), Some(&[1.0, 2.0][..]));
/// # Ok::<(), regraft_tensor::TensorError>(())
/// ```
#[derive(Clone)]
pub struct RemoteBytes(Arc<Inner>);

struct Inner {
    device: Arc<str>,
    address: u64,
    len: usize,
    fetch: Box<Fetch>,
    here: OnceLock<AlignedVec>,
}

impl RemoteBytes {
    /// `len` bytes at an address of `device`, whose name is that of a device of Regraft: `cuda:0`.
    ///
    /// # Safety
    /// Until the last clone is dropped, the bytes are memory of that device, and everything that writes to them is over. Nobody
    /// writes to them during a call that they are given to. What `fetch` holds may keep them there.
    pub unsafe fn new(device: Arc<str>, address: u64, len: usize, fetch: Box<Fetch>) -> RemoteBytes {
        RemoteBytes(Arc::new(Inner { device, address, len, fetch, here: OnceLock::new() }))
    }

    /// Where they are on `device`, when it is that one.
    pub fn on(&self, device: &str) -> Option<u64> {
        (*self.0.device == *device).then_some(self.0.address)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// A copy on the host, made when it is first asked for.
    ///
    /// # Errors
    /// When the device fails, or the host has no memory.
    pub fn fetch(&self) -> Result<&[u8], TensorError> {
        if let Some(here) = self.0.here.get() {
            return Ok(here.bytes());
        }
        let failed = |why: String| TensorError::from(ErrorKind::Remote { device: self.0.device.to_string(), why });
        let copy = (self.0.fetch)().map_err(failed)?;
        if copy.len() != self.0.len {
            return Err(failed(format!("{} of {} bytes were copied", copy.len(), self.0.len)));
        }
        Ok(self.0.here.get_or_init(|| copy).bytes())
    }

    /// The bytes on the host.
    ///
    /// # Panics
    /// When they cannot be [fetched](RemoteBytes::fetch): fetch them first where that can happen.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self.fetch() {
            Ok(bytes) => bytes,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn is_same(&self, other: &RemoteBytes) -> bool {
        let (one, other) = (&*self.0, &*other.0);
        one.device == other.device && one.address == other.address && one.len == other.len
    }
}

impl fmt::Debug for RemoteBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteBytes({} bytes on {})", self.0.len, self.0.device)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{Buffer, DType, Tensor};

    fn remote(values: &'static [f32], fetched: &'static AtomicUsize) -> Tensor {
        let fetch = move || {
            fetched.fetch_add(1, Ordering::SeqCst);
            Ok(AlignedVec::from_slice(values))
        };
        // SAFETY: the address is not used.
        let bytes = unsafe { RemoteBytes::new("cuda:0".into(), 64, values.len() * 4, Box::new(fetch)) };
        Tensor::new(DType::F32, vec![values.len()], Buffer::Remote(bytes)).expect("as many bytes")
    }

    #[test]
    fn bytes_come_to_the_host_once_and_only_when_they_are_asked_for() {
        static FETCHED: AtomicUsize = AtomicUsize::new(0);
        let tensor = remote(&[1.0, 2.0], &FETCHED);
        assert!(tensor.is_borrowed() && tensor.aligned().is_borrowed() && tensor.byte_count() == 8);
        assert_eq!((tensor.remote_on("cuda:0"), tensor.remote_on("cuda:1")), (Some(64), None));
        assert_eq!(FETCHED.load(Ordering::SeqCst), 0);
        let kept = tensor.to_owned_memory().expect("memory of two floats");
        assert!(!kept.is_borrowed() && kept.bit_equal(&tensor));
        assert_eq!(tensor.clone().as_slice::<f32>(), Some(&[1.0, 2.0][..]));
        assert_eq!(FETCHED.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_does_not_come_is_an_error() {
        let fetch = || Err("it is gone".to_owned());
        // SAFETY: the address is not used.
        let bytes = unsafe { RemoteBytes::new("cuda:0".into(), 64, 4, Box::new(fetch)) };
        assert_eq!(bytes.fetch().map_err(|error| error.to_string()), Err("cuda:0: it is gone".to_owned()));
    }
}
