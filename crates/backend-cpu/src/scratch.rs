//! Memory that a routine works in: it belongs to the caller, who asks how much is needed, and nothing is kept in it.

use bytemuck::Pod;

/// Every part starts on a cache line.
pub const ALIGN: usize = 64;

/// Bytes that [`Scratch::take`] uses up for `len` elements.
pub const fn bytes_of<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGN)
}

/// Scratch memory, handed out part by part. Contents are unspecified.
#[derive(Debug)]
pub struct Scratch<'a> {
    rest: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    /// All of `bytes`.
    ///
    /// # Panics
    ///
    /// If there are bytes that do not start on a cache line.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        assert!(bytes.is_empty() || bytes.as_ptr().addr().is_multiple_of(ALIGN), "scratch starts on a cache line");
        Scratch { rest: bytes }
    }

    /// No memory, for what needs none.
    pub fn none() -> Scratch<'static> {
        Scratch { rest: &mut [] }
    }

    /// `len` elements.
    ///
    /// # Panics
    ///
    /// If less is left.
    pub fn take<T: Pod>(&mut self, len: usize) -> &'a mut [T] {
        if len == 0 {
            // Scratch of no bytes starts anywhere.
            return &mut [];
        }
        let bytes = bytes_of::<T>(len);
        let rest = std::mem::take(&mut self.rest);
        assert!(bytes <= rest.len(), "scratch of {} bytes, {bytes} are needed", rest.len());
        let (part, rest) = rest.split_at_mut(bytes);
        self.rest = rest;
        bytemuck::cast_slice_mut(&mut part[..len * size_of::<T>()])
    }

    /// A part of `len` elements for each of `count` workers.
    ///
    /// # Panics
    ///
    /// If less is left.
    pub fn parts<T: Pod>(&mut self, count: usize, len: usize) -> Vec<&'a mut [T]> {
        (0..count).map(|_| self.take(len)).collect()
    }

    /// The same memory again, for a call that gives it back.
    pub fn again(&mut self) -> Scratch<'_> {
        Scratch { rest: self.rest }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use regraft_tensor::AlignedVec;

    use super::Scratch;

    /// Runs `f` with `len` bytes of scratch that hold garbage.
    pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut Scratch<'_>) -> R) -> R {
        let mut bytes = AlignedVec::copy_of(&vec![0xff; len]);
        f(&mut Scratch::new(bytes.bytes_mut()))
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::with_scratch, *};

    #[test]
    fn parts_stand_apart_on_cache_lines() {
        with_scratch(3 * bytes_of::<f32>(17) + bytes_of::<u16>(1), |scratch| {
            let mut parts = scratch.parts::<f32>(3, 17);
            let one = scratch.take::<u16>(1);
            parts.iter_mut().enumerate().for_each(|(i, part)| part.fill(i as f32));
            one[0] = 9;
            assert!(parts.iter().enumerate().all(|(i, part)| part.len() == 17 && part.iter().all(|x| *x == i as f32)));
            assert!(parts.iter().all(|part| part.as_ptr().addr().is_multiple_of(ALIGN)));
        });
    }

    #[test]
    #[should_panic(expected = "are needed")]
    fn more_than_there_is_is_refused() {
        with_scratch(64, |scratch| _ = scratch.take::<f32>(17));
    }
}
