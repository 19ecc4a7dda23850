//! One block: exclusive or, sorting of bytes, compression.

use crate::header::{Block, How};

/// Fast, and hardly worse than higher levels on what is left after sorting.
const LEVEL: i32 = 3;

/// The block of `new` against that of `base`, where there is one; `width` is the bytes of an element.
pub(crate) fn encode(new: &[u8], base: Option<&[u8]>, width: usize) -> std::io::Result<(Block, Vec<u8>)> {
    if base == Some(new) {
        return Ok((Block { how: How::Same, len: 0 }, Vec::new()));
    }
    let mut difference = new.to_vec();
    if let Some(base) = base {
        xor(&mut difference, base);
    }
    let mut sorted = vec![0; new.len()];
    sort(&difference, &mut sorted, width);
    let compressed = zstd::bulk::compress(&sorted, LEVEL)?;
    let (how, bytes) = match compressed.len() < difference.len() {
        true => (How::Compressed, compressed),
        false => (How::Raw, difference),
    };
    // No block is larger than `BLOCK`.
    Ok((Block { how, len: bytes.len() as u32 }, bytes))
}

/// Puts the block into `out`, which has its size. `None` when it is damaged.
pub(crate) fn decode(block: Block, stored: &[u8], base: Option<&[u8]>, width: usize, out: &mut [u8]) -> Option<()> {
    match block.how {
        How::Same => {
            out.copy_from_slice(base?);
            return Some(());
        }
        How::Raw => out.copy_from_slice(stored),
        How::Compressed => {
            // No more is written than there is room for, whatever the frame says of itself.
            let mut sorted = vec![0; out.len()];
            let len = zstd::bulk::decompress_to_buffer(stored, &mut sorted[..]).ok()?;
            if len != out.len() {
                return None;
            }
            unsort(&sorted, out, width);
        }
    }
    if let Some(base) = base {
        xor(out, base);
    }
    Some(())
}

fn xor(bytes: &mut [u8], other: &[u8]) {
    bytes.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

/// First bytes of all elements, then second bytes, and so on; what is left of a last element as it is.
fn sort(bytes: &[u8], out: &mut [u8], width: usize) {
    let count = bytes.len() / width;
    for (place, plane) in out[..count * width].chunks_exact_mut(count.max(1)).enumerate() {
        plane.iter_mut().zip(bytes[place..].iter().step_by(width)).for_each(|(to, from)| *to = *from);
    }
    out[count * width..].copy_from_slice(&bytes[count * width..]);
}

fn unsort(sorted: &[u8], out: &mut [u8], width: usize) {
    let count = out.len() / width;
    for (place, plane) in sorted[..count * width].chunks_exact(count.max(1)).enumerate() {
        out[place..].iter_mut().step_by(width).zip(plane).for_each(|(to, from)| *to = *from);
    }
    out[count * width..].copy_from_slice(&sorted[count * width..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_come_back(
            new in proptest::collection::vec(any::<u8>(), 0..500),
            other in proptest::collection::vec(any::<u8>(), 500),
            mask: u8,
            power in 0u32..4,
        ) {
            let base: Vec<u8> = new.iter().zip(&other).map(|(a, b)| a ^ (b & mask)).collect();
            for base in [None, Some(&base[..])] {
                let width = 1 << power;
                let (block, stored) = encode(&new, base, width).unwrap();
                prop_assert_eq!(block.len as usize, stored.len());
                let mut out = vec![0; new.len()];
                prop_assert!(decode(block, &stored, base, width, &mut out).is_some());
                prop_assert_eq!(&out, &new);
            }
        }

        #[test]
        fn nonsense_is_refused_or_decoded(stored in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut out = [0; 64];
            let block = Block { how: How::Compressed, len: stored.len() as u32 };
            _ = decode(block, &stored, None, 4, &mut out);
        }
    }
}
