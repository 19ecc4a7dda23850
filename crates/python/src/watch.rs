//! What a `MutableModule` watches between calls: the shallow content of Python containers, and samples of memory.
//!
//! Nothing is interpreted here. The package says which containers and which memory, and finds out what a change means.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::PyTypeError,
    ffi,
    prelude::*,
    types::{PyDict, PyList},
};

/// Bytes of a sampled place: a cache line.
const LINE: usize = 64;
/// Memory of at most this many lines is read whole.
const WHOLE: usize = 8;
/// Lines that are read of larger memory.
const SAMPLED: usize = 6;
/// How many containers ahead tables are asked for.
const AHEAD: usize = 16;

/// Containers (dicts and lists) with what was in them, by identity, and memory with samples of what was in it.
///
/// What is looked at is spread over all memory, and a run of a model pushes it out of the caches: most of the time of a look
/// would be spent waiting for one line after the other, so they are asked for ahead.
#[pyclass(module = "regraft")]
#[derive(Default)]
pub(crate) struct Watch {
    containers: Vec<Container>,
    /// Of all containers, one after the other: keys and values of a dict in turn, or items of a list. Held, so that an
    /// address is never another object's.
    items: Vec<Py<PyAny>>,
    regions: Vec<Region>,
    places: Vec<Place>,
    /// Tensors that are asked for their properties after a look at the containers.
    tensors: Vec<Py<PyAny>>,
}

struct Container {
    object: Py<PyAny>,
    is_dict: bool,
    /// How many of the items are its.
    len: usize,
}

/// Memory of one tensor.
struct Region {
    address: usize,
    /// Its places are from here to the next region's first.
    first_place: usize,
}

/// A part of a region and what it held.
struct Place {
    address: usize,
    len: usize,
    held: [u64; LINE / 8],
}

#[pymethods]
impl Watch {
    #[new]
    fn new() -> Watch {
        Watch::default()
    }

    /// Watches these dicts and lists, as they are now, and no others.
    fn watch_containers(&mut self, containers: &Bound<'_, PyList>) -> PyResult<()> {
        (self.containers, self.items) = (Vec::with_capacity(containers.len()), Vec::new());
        for object in containers.iter() {
            self.containers.push(Container::new(&object, &mut self.items)?);
        }
        Ok(())
    }

    /// Indices of containers that hold other objects than they did, or the same in another order.
    fn changed_containers(&self, py: Python<'_>) -> Vec<usize> {
        self.containers.iter().for_each(|container| prefetch(container.object.as_ptr() as usize, 1));
        self.tensors.iter().for_each(|tensor| prefetch(tensor.as_ptr() as usize, 1));
        let (mut changed, mut items) = (Vec::new(), self.items.as_slice());
        self.containers.iter().take(AHEAD).for_each(Container::prefetch_items);
        for (index, container) in self.containers.iter().enumerate() {
            if let Some(later) = self.containers.get(index + AHEAD) {
                later.prefetch_items();
            }
            let (expected, rest) = items.split_at(container.len);
            items = rest;
            if !container.holds(py, expected) {
                changed.push(index);
            }
        }
        self.tensors.iter().for_each(|tensor| {
            // A tensor's object holds the address of what the tensor is, behind a flag.
            let words = words_of(tensor, 4);
            words[2..].iter().for_each(|word| prefetch(*word, 3));
        });
        self.places.iter().for_each(|place| prefetch(place.address, 1));
        changed
    }

    /// Tensors whose properties the caller reads after each look at the containers.
    fn expect_tensors(&mut self, tensors: Vec<Py<PyAny>>) {
        self.tensors = tensors;
    }

    /// Watches the memory of `sizes[i]` bytes at `addresses[i]`, as it is now, and no other.
    fn watch_memory(&mut self, addresses: Vec<usize>, sizes: Vec<usize>) {
        (self.regions, self.places) = (Vec::with_capacity(addresses.len()), Vec::new());
        for (address, size) in addresses.into_iter().zip(sizes) {
            self.regions.push(Region { address, first_place: self.places.len() });
            self.places.extend(places_of(address, size));
        }
    }

    /// Indices of regions that are elsewhere now, or whose samples differ. Only memory whose address is the same is read: the
    /// caller vouches that it is as large as it was.
    fn changed_memory(&self, addresses: Vec<usize>) -> Vec<usize> {
        let ends = self.regions.iter().skip(1).map(|region| region.first_place).chain([self.places.len()]);
        let regions = self.regions.iter().zip(ends).zip(addresses).enumerate();
        let changed = regions.filter(|(_, ((region, end), address))| {
            region.address != *address || !self.places[region.first_place..*end].iter().all(Place::is_as_it_was)
        });
        changed.map(|(index, _)| index).collect()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let containers = self.containers.iter().map(|container| &container.object);
        containers.chain(&self.items).chain(&self.tensors).try_for_each(|object| visit.call(object))
    }

    fn __clear__(&mut self) {
        (self.containers, self.items, self.tensors) = Default::default();
    }
}

impl Container {
    fn new(object: &Bound<'_, PyAny>, items: &mut Vec<Py<PyAny>>) -> PyResult<Container> {
        let is_dict = object.is_instance_of::<PyDict>();
        if !is_dict && !object.is_instance_of::<PyList>() {
            return Err(PyTypeError::new_err(format!("expected a dict or a list, found {}", object.get_type())));
        }
        let before = items.len();
        // SAFETY: items are borrowed from a live container, and owned before anything else can run.
        visit(object, is_dict, |item| items.push(unsafe { Bound::from_borrowed_ptr(object.py(), item) }.unbind()));
        Ok(Container { object: object.clone().unbind(), is_dict, len: items.len() - before })
    }

    fn holds(&self, py: Python<'_>, expected: &[Py<PyAny>]) -> bool {
        let object = self.object.bind(py);
        // SAFETY: the object was found to be of its type when it was taken in, and types of containers do not change.
        let size = unsafe {
            match self.is_dict {
                true => 2 * ffi::PyDict_Size(object.as_ptr()),
                false => ffi::PyList_Size(object.as_ptr()),
            }
        };
        if usize::try_from(size) != Ok(expected.len()) {
            return false;
        }
        let (mut expected, mut same) = (expected.iter(), true);
        visit(object, self.is_dict, |item| same &= expected.next().is_some_and(|held| held.as_ptr() == item));
        same
    }

    /// Asks for the tables behind the object.
    fn prefetch_items(&self) {
        if self.len > 0 {
            // Where a dict has its keys and values, with the order of values in front of them, and a list its items.
            let words = words_of(&self.object, if self.is_dict { 6 } else { 4 });
            let lines = 2 + self.len * size_of::<usize>() / LINE;
            words[3..].iter().for_each(|word| prefetch(word.wrapping_sub(LINE), lines));
        }
    }
}

/// Asks for some lines of memory. Any address will do: it is a hint, and no access.
fn prefetch(address: usize, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(line * LINE) as *const i8) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, lines);
}

/// The first words of an object, which may be addresses: for hints only. Tensors, dicts and lists have at least as many as are
/// asked for.
fn words_of(object: &Py<PyAny>, count: usize) -> [usize; 6] {
    let (mut words, object) = ([0; 6], object.as_ptr() as *const usize);
    for (i, word) in words.iter_mut().enumerate().take(count) {
        // SAFETY: inside of a live object, aligned.
        *word = unsafe { ptr::read_volatile(object.add(i)) };
    }
    words
}

/// Shows the items of a dict or a list, which must not change meanwhile.
fn visit(object: &Bound<'_, PyAny>, is_dict: bool, mut see: impl FnMut(*mut ffi::PyObject)) {
    let object = object.as_ptr();
    if is_dict {
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: a dict, which nothing changes meanwhile: the interpreter's lock is held and `see` runs none of its code.
        while unsafe { ffi::PyDict_Next(object, &raw mut position, &raw mut key, &raw mut value) } != 0 {
            see(key);
            see(value);
        }
    } else {
        // SAFETY: a list, as above.
        (0..unsafe { ffi::PyList_Size(object) }).for_each(|i| see(unsafe { ffi::PyList_GetItem(object, i) }));
    }
}

/// The places of a region: all of it where it is small; else its ends, and lines spread over it, each at a place of its part
/// that does not follow the length of rows.
fn places_of(address: usize, size: usize) -> Vec<Place> {
    let (first, last) = (address.next_multiple_of(LINE), (address + size) / LINE * LINE);
    if size < 2 * LINE || first >= last {
        let parts = (address..address + size).step_by(LINE);
        return parts.map(|at| Place::new(at, LINE.min(address + size - at))).collect();
    }
    let lines = (last - first) / LINE;
    let line = |index: usize| Place::new(first + index * LINE, LINE);
    let mut places = vec![Place::new(address, first - address), Place::new(last, address + size - last)];
    if lines <= WHOLE {
        places.extend((0..lines).map(line));
    } else {
        places.extend([line(0), line(lines - 1)]);
        let inner = SAMPLED - 2;
        places.extend((0..inner).map(|i| {
            let (from, to) = (1 + i * (lines - 2) / inner, 1 + (i + 1) * (lines - 2) / inner);
            // The golden ratio of 2^64: parts of it are spread evenly.
            let spread = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            line(from + ((spread as usize * (to - from)) >> 32))
        }));
    }
    places.retain(|place| place.len > 0);
    places
}

impl Place {
    fn new(address: usize, len: usize) -> Place {
        Place { address, len, held: read(address, len) }
    }

    fn is_as_it_was(&self) -> bool {
        self.held == read(self.address, self.len)
    }
}

/// Reads at most a line. Memory that somebody writes to meanwhile gives one of its states or a mix of them: a mix differs
/// from what was held, or is found different by the next reading.
fn read(address: usize, len: usize) -> [u64; LINE / 8] {
    let mut held = [0; LINE / 8];
    if len == LINE && address.is_multiple_of(8) {
        for (i, word) in held.iter_mut().enumerate() {
            // SAFETY: inside of memory that the caller of `Watch` vouches for, and aligned.
            *word = unsafe { ptr::read_volatile((address as *const u64).add(i)) };
        }
    } else {
        for i in 0..len {
            // SAFETY: as above.
            held[i / 8] |= u64::from(unsafe { ptr::read_volatile((address as *const u8).add(i)) }) << (i % 8 * 8);
        }
    }
    held
}
