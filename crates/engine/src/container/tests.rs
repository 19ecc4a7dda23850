use std::{
    fs,
    io::{self, Cursor, Seek, SeekFrom, Write},
    path::Path,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    CHUNK_ALIGNMENT, Container, ContainerError, ContainerErrorKind as Kind, ContainerWriter, Format, SectionClass,
    SectionKind, Verify,
    layout::{self, ENTRY_LEN, HEADER_LEN},
    write::Encoder,
};
use crate::atomic_file::AtomicFile;

const PLAN: SectionKind = SectionKind { id: 1, name: "plan", class: SectionClass::Metadata };
const NOTES: SectionKind = SectionKind { id: 2, name: "notes", class: SectionClass::Metadata };
const WEIGHTS: SectionKind = SectionKind { id: 3, name: "weights", class: SectionClass::Weights };
static FORMAT: Format = Format { version: 7, sections: &[PLAN, NOTES, WEIGHTS] };

/// A container in memory.
fn encode(plan: &[u8], weights: &[&[u8]]) -> Vec<u8> {
    let mut encoder = Encoder::new(Cursor::new(Vec::new()), &FORMAT).unwrap();
    encoder.section(PLAN, [Ok(plan)]).unwrap();
    encoder.section(WEIGHTS, weights.iter().map(Ok)).unwrap();
    encoder.finish().unwrap().0.into_inner()
}

fn small_file() -> Vec<u8> {
    encode(b"a plan", &[b"first chunk", b"second"])
}

/// Everything that `Container::open` does after mapping the file.
fn check(file: &[u8]) -> Result<(), Kind> {
    layout::parse(file, &[&FORMAT])?.entries.iter().try_for_each(|entry| entry.verify(file))
}

fn open_bytes(bytes: &[u8], verify: Verify) -> Result<Container, ContainerError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rgf");
    fs::write(&path, bytes).unwrap();
    Container::open(path, &[&FORMAT], verify)
}

fn refusal(bytes: &[u8]) -> String {
    open_bytes(bytes, Verify::All).unwrap_err().to_string()
}

fn file_count(dir: &TempDir) -> usize {
    fs::read_dir(dir.path()).unwrap().count()
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rgf");
    // More than a piece, so that it is hashed by several threads and in several steps.
    let big: Vec<u8> = (0..9_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = ContainerWriter::create(&path, &FORMAT).unwrap();
    writer.section(PLAN, b"the plan").unwrap();
    let offsets = writer.chunked_section(WEIGHTS, [&b"small"[..], &big, b"", b"last"].map(Ok)).unwrap();
    let len = writer.finish().unwrap();

    assert_eq!(fs::metadata(&path).unwrap().len(), len);
    assert_eq!(file_count(&dir), 1);
    let container = Container::open(&path, &[&FORMAT], Verify::All).unwrap();
    assert_eq!(container.section(PLAN).unwrap().bytes(), b"the plan");
    let weights = container.section(WEIGHTS).unwrap();
    for (offset, chunk) in offsets.iter().zip([&b"small"[..], &big, b"", b"last"]) {
        assert_eq!(offset % CHUNK_ALIGNMENT, 0);
        assert_eq!(&weights.bytes()[*offset as usize..][..chunk.len()], chunk);
    }
    assert_eq!(offsets.len(), 4);
    let infos: Vec<_> = container.sections().collect();
    assert_eq!(infos.iter().map(|info| info.kind).collect::<Vec<_>>(), [PLAN, WEIGHTS]);
    assert_eq!(infos[0].digest, *blake3::hash(b"the plan").as_bytes());
    assert_eq!(infos[1].digest, *blake3::hash(weights.bytes()).as_bytes());
}

#[test]
fn sections_are_aligned_in_the_file_and_in_memory() {
    let container = open_bytes(&small_file(), Verify::All).unwrap();
    for info in container.sections() {
        let alignment = info.kind.class.alignment();
        assert_eq!(info.offset % alignment, 0);
        assert_eq!(container.section(info.kind).unwrap().bytes().as_ptr() as u64 % alignment, 0);
    }
}

#[test]
fn the_same_content_gives_the_same_bytes_and_digest() {
    let digest = |bytes: &[u8]| open_bytes(bytes, Verify::All).unwrap().digest();
    assert_eq!(small_file(), small_file());
    assert_eq!(digest(&small_file()), digest(&small_file()));
    assert_ne!(digest(&small_file()), digest(&encode(b"a plan", &[b"first chunk", b"secondo"])));
}

#[test]
fn a_container_may_be_empty_and_so_may_a_section() {
    let nothing = Encoder::new(Cursor::new(Vec::new()), &FORMAT).unwrap().finish().unwrap().0.into_inner();
    assert_eq!(open_bytes(&nothing, Verify::All).unwrap().sections().len(), 0);
    let container = open_bytes(&encode(b"", &[]), Verify::All).unwrap();
    assert!(container.section(PLAN).unwrap().is_empty());
    assert!(container.section(WEIGHTS).unwrap().is_empty());
}

#[test]
fn a_missing_section_is_an_error_or_none() {
    let container = open_bytes(&small_file(), Verify::All).unwrap();
    assert!(container.optional_section(NOTES).is_none());
    let error = container.section(NOTES).unwrap_err();
    assert!(matches!(error.kind(), Kind::MissingSection { section: "notes" }));
}

#[test]
fn a_format_with_more_sections_reads_the_files_of_one_with_fewer() {
    static MORE: Format = Format {
        version: 7,
        sections: &[PLAN, NOTES, WEIGHTS, SectionKind { id: 4, name: "more", class: SectionClass::Metadata }],
    };
    assert!(layout::parse(&small_file(), &[&MORE]).is_ok());
}

#[test]
fn every_flipped_bit_is_found() {
    let file = small_file();
    assert!(check(&file).is_ok());
    let mut damaged = file.clone();
    for at in 0..file.len() {
        for bit in 0..8 {
            damaged[at] ^= 1 << bit;
            assert!(check(&damaged).is_err(), "bit {bit} of byte {at}");
            damaged[at] = file[at];
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let file = small_file();
    for len in 0..file.len() {
        let error = check(&file[..len]).unwrap_err();
        match error {
            Kind::NotAnEngine { .. } => assert_eq!(len, 0),
            Kind::Truncated { expected, found } => {
                assert_eq!(found, len as u64);
                assert_eq!(expected, if len < HEADER_LEN { HEADER_LEN } else { file.len() } as u64);
            }
            other => panic!("{len} bytes: {other}"),
        }
    }
}

#[test]
fn appended_bytes_are_found() {
    let mut file = small_file();
    file.push(0);
    assert!(refusal(&file).contains("something was appended"), "{}", refusal(&file));
}

#[test]
fn damage_is_reported_with_file_section_and_advice() {
    let mut file = small_file();
    *file.last_mut().unwrap() ^= 4;
    let text = refusal(&file);
    let expected = "a.rgf: the file is damaged in its section `weights`: its 70 bytes at 4096 do not match their digest\n  \
        help: copy the file again; if the original is damaged too, compile the model again";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn metadata_verification_skips_the_weights_only() {
    let mut file = small_file();
    let last = file.len() - 1;
    file[last] ^= 4;
    let container = open_bytes(&file, Verify::Metadata).unwrap();
    container.verify_section(PLAN).unwrap();
    container.verify_section(NOTES).unwrap();
    assert!(matches!(container.verify_section(WEIGHTS).unwrap_err().kind(), Kind::Corrupt { .. }));
    let plan = container.sections().next().unwrap().offset as usize;
    file[plan] ^= 1;
    assert!(open_bytes(&file, Verify::Metadata).unwrap_err().to_string().contains("section `plan`"));
}

#[test]
fn other_versions_are_refused_with_the_way_out() {
    let mut file = small_file();
    file[8] = 6;
    assert!(refusal(&file).contains("expected format version 7, found 6\n  help: an older Regraft"));
    file[8] = 8;
    assert!(refusal(&file).contains("expected format version 7, found 8\n  help: a newer Regraft"));
    assert!(refusal(&file).contains("upgrade"));
}

#[test]
fn other_files_are_recognized() {
    let safetensors = [&2u64.to_le_bytes()[..], b"{}"].concat();
    let cases: &[(&[u8], &str)] = &[
        (b"", "an empty file"),
        (b"PK\x03\x04rest", "a zip archive"),
        (&safetensors, "a safetensors file"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
        (b"\x89RGF\n\x1a\n rest of the file", "a transfer in text mode"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("# Ein Text über nichts".as_bytes(), "a text file"),
        (&[0xfe; 100], "a file of an unknown kind"),
        (&[0], "a file of an unknown kind"),
    ];
    for (bytes, expected) in cases {
        let text = refusal(bytes);
        assert!(text.contains(expected) && text.contains("\n  help: "), "{text}");
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| Container::open(path, &[&FORMAT], Verify::All).unwrap_err();
    assert!(open(dir.path()).to_string().contains("found a directory"));
    let missing = open(&dir.path().join("none.rgf"));
    assert!(matches!(missing.kind(), Kind::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound));
    assert!(missing.to_string().contains("none.rgf: could not open the file: "), "{missing}");
    #[cfg(unix)]
    assert!(open(Path::new("/dev/null")).to_string().contains("a device or a pipe"));
}

#[test]
fn a_failing_chunk_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rgf");
    fs::write(&path, "old").unwrap();
    let mut writer = ContainerWriter::create(&path, &FORMAT).unwrap();
    writer.section(PLAN, b"plan").unwrap();
    assert_eq!(file_count(&dir), 2);
    let chunks = [Ok(&b"one"[..]), Err(io::Error::other("the recipe failed"))];
    let text = writer.chunked_section(WEIGHTS, chunks).unwrap_err().to_string();
    assert!(text.ends_with("a.rgf: could not write section `weights`: the recipe failed"), "{text}");
    assert_eq!(file_count(&dir), 1, "gone at once, not when the writer is dropped");
    assert!(writer.section(NOTES, b"more").unwrap_err().to_string().contains("an earlier section failed"));
    assert!(writer.finish().is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ContainerWriter::create(dir.path().join("a.rgf"), &FORMAT).unwrap();
    writer.section(PLAN, b"plan").unwrap();
    drop(writer);
    assert_eq!(file_count(&dir), 0);
}

#[test]
fn a_directory_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = ContainerWriter::create(dir.path().join("no/a.rgf"), &FORMAT).unwrap_err().to_string();
    assert!(text.contains("no/a.rgf: could not write the file: ") && text.contains("create its directory"), "{text}");
}

/// Fails as a full disk does after `left` bytes.
struct FullDisk<W> {
    out: W,
    left: usize,
}

impl<W: Write> Write for FullDisk<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.left);
        if len == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = self.out.write(&bytes[..len])?;
        self.left -= len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Seek> Seek for FullDisk<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.out.seek(to)
    }
}

fn write_to(out: impl Write + Seek) -> Result<(), Kind> {
    let mut encoder = Encoder::new(out, &FORMAT)?;
    encoder.section(PLAN, [Ok(b"a plan")])?;
    encoder.section(WEIGHTS, [Ok(b"first"), Ok(b"other")])?;
    encoder.finish().map(drop)
}

#[test]
fn a_full_disk_is_an_error_at_any_byte_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("a.rgf");
    let written = {
        let mut disk = FullDisk { out: Cursor::new(Vec::new()), left: usize::MAX };
        write_to(&mut disk).unwrap();
        usize::MAX - disk.left
    };
    for left in (0..written).step_by(13).chain([written - 1]) {
        let file = AtomicFile::create(&target).unwrap();
        match write_to(FullDisk { out: file, left }).unwrap_err() {
            Kind::Io { cause, writing: true, .. } => assert_eq!(cause.kind(), io::ErrorKind::StorageFull),
            other => panic!("{left} bytes left: {other}"),
        }
        assert_eq!(file_count(&dir), 0, "{left} bytes left");
    }
    assert!(write_to(FullDisk { out: AtomicFile::create(&target).unwrap(), left: written }).is_ok());
}

#[test]
#[should_panic(expected = "section `plan` is written twice")]
fn a_section_cannot_be_written_twice() {
    let mut encoder = Encoder::new(Cursor::new(Vec::new()), &FORMAT).unwrap();
    encoder.section(PLAN, [Ok(b"1")]).unwrap();
    let _ = encoder.section(PLAN, [Ok(b"2")]);
}

/// Puts `value` over the bytes at `at` and makes the digest of the header right again, as an attacker can.
fn forge(at: usize, value: &[u8]) -> Vec<u8> {
    let mut file = small_file();
    file[at..at + value.len()].copy_from_slice(value);
    layout::seal(&mut file[..HEADER_LEN + 2 * ENTRY_LEN]);
    file
}

fn forged(at: usize, value: &[u8]) -> String {
    check(&forge(at, value)).unwrap_err().to_string()
}

#[test]
fn forged_tables_are_refused() {
    let (first, second) = (HEADER_LEN, HEADER_LEN + ENTRY_LEN);
    let far = u64::MAX.to_le_bytes();
    assert!(forged(12, &[1]).contains("expected no flags"));
    assert!(forged(16, &far).contains("cut short"));
    assert!(forged(28, &[0xff; 4]).contains("a gap"));
    assert!(forged(28, &[0; 4]).contains("a gap"));
    assert!(forged(first, &[99]).contains("section kind 99 is unknown to format version 7"));
    assert!(forged(second, &[1]).contains("section `plan` is there twice"));
    assert!(forged(first + 4, &[1]).contains("unknown fields"));
    assert!(forged(first + 8, &far).contains("does not follow"));
    assert!(forged(second + 8, &0u64.to_le_bytes()).contains("does not follow"));
    assert!(forged(first + 16, &far).contains("leaves the file"));
    assert!(forged(second + 16, &5u64.to_le_bytes()).contains("end with its last section"));
    assert!(forged(second + 24, &[0; 32]).contains("section `weights`"));
}

proptest! {
    #[test]
    fn any_sections_come_back(plan: Vec<u8>, chunks: Vec<Vec<u8>>) {
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let container = open_bytes(&encode(&plan, &chunks), Verify::All).unwrap();
        let read = container.section(PLAN).unwrap();
        prop_assert_eq!(read.bytes(), &plan[..]);
        let weights = container.section(WEIGHTS).unwrap();
        let mut rest = weights.bytes();
        for (i, chunk) in chunks.iter().enumerate() {
            prop_assert_eq!(&rest[..chunk.len()], *chunk);
            let end = if i + 1 < chunks.len() { chunk.len().next_multiple_of(64) } else { chunk.len() };
            rest = &rest[end..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_flip_or_a_cut_of_a_mapped_file_is_refused(bit in 0..small_file().len() * 8, cut in 0..small_file().len()) {
        let mut file = small_file();
        file[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(open_bytes(&file, Verify::All).is_err());
        prop_assert!(open_bytes(&small_file()[..cut], Verify::All).is_err());
    }

    #[test]
    fn a_forged_header_never_panics(at in 8..HEADER_LEN + 2 * ENTRY_LEN - 8, value: u64, small in 0..10_000u64) {
        for value in [value, small, small.wrapping_neg()] {
            let _ = check(&forge(at, &value.to_le_bytes()));
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes: Vec<u8>, after_magic: bool) {
        let start = if after_magic { &layout::MAGIC[..] } else { &[] };
        prop_assert!(check(&[start, &bytes].concat()).is_err());
    }
}
