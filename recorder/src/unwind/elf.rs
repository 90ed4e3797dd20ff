//! The few things of an ELF file that unwinding needs: its segments, where its unwind sections lie,
//! its build id.
//!
//! Files are read with `pread`, never mapped: the target may truncate them at any time. Whatever the
//! bytes say, reading is bounded by the file's size and by the limits below, and nothing panics. Of
//! 32-bit files only the segments and the build id are read: frames in them are placed, not unwound.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::statfs::fstatfs;

use crate::patience::{PATIENCE, within};

/// No table (section headers, unwind sections) larger than this is read whole, in bytes.
const MAX_TABLE: u64 = 128 << 20;
/// No note segment larger than this is searched for a build id, in bytes.
const MAX_NOTES: u64 = 64 << 10;
/// A build id is 20 bytes nearly everywhere; anything longer than this is not one.
const MAX_BUILD_ID: usize = 64;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;
const SHT_NOBITS: u32 = 8;
const SHF_COMPRESSED: u64 = 0x800;
const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;
const NT_GNU_BUILD_ID: u32 = 3;
const R_X86_64_RELATIVE: u32 = 8;
const SHN_UNDEF: u16 = 0;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;
const PAGE: u64 = 4096;

/// `FUSE_SUPER_MAGIC` of linux/magic.h.
const FUSE: i64 = 0x6573_5546;

/// Where a module's bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    File(ModuleFile),
    Memory(Box<[u8]>),
    /// What is mapped of a file that could not be opened.
    Pieces(Box<[Piece]>),
}

/// A part of a file.
#[derive(Debug)]
pub struct Piece {
    /// Where in the file it begins, bytes.
    pub offset: u64,
    /// What it holds.
    pub bytes: Box<[u8]>,
}

/// An open file of a module.
#[derive(Debug)]
pub struct ModuleFile {
    file: Arc<File>,
    /// A program serves it, which may be one that waits for us.
    served: bool,
    /// It did not answer once.
    silent: Cell<bool>,
}

impl From<File> for ModuleFile {
    /// Asks what file system it is on, which may take as long as that likes.
    fn from(file: File) -> ModuleFile {
        let served = fstatfs(&file).is_ok_and(|fs| fs.filesystem_type().0 == FUSE);
        ModuleFile {
            file: Arc::new(file),
            served,
            silent: Cell::new(false),
        }
    }
}

impl ModuleFile {
    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.served {
            return self.file.read_at(buf, offset);
        }
        let mut copy = vec![0; buf.len()];
        let (copy, n) = self.ask(move |file| {
            let n = file.read_at(&mut copy, offset);
            (copy, n)
        })?;
        buf.copy_from_slice(&copy);
        n
    }

    fn len(&self) -> io::Result<u64> {
        if !self.served {
            return Ok(self.file.metadata()?.len());
        }
        Ok(self.ask(|file| file.metadata())??.len())
    }

    fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&File) -> T + Send + 'static,
    ) -> io::Result<T> {
        if self.silent.get() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let file = Arc::clone(&self.file);
        let answer = within(PATIENCE, move || what(&file));
        self.silent.set(answer.is_none());
        answer.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

impl Source {
    /// Reads up to `buf.len()` bytes at `offset`; returns how many there were.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        match self {
            Source::File(file) => {
                let mut done = 0;
                while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
                    match file.read_at(rest, offset.saturating_add(done as u64)) {
                        Ok(0) => break,
                        Ok(n) => done += n,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => break,
                    }
                }
                done
            }
            Source::Memory(bytes) => read_from(bytes, offset, buf),
            Source::Pieces(pieces) => {
                let read = pieces.iter().map(|piece| {
                    let offset = offset.checked_sub(piece.offset);
                    offset.map_or(0, |offset| read_from(&piece.bytes, offset, buf))
                });
                read.max().unwrap_or(0)
            }
        }
    }

    /// Exactly `N` bytes at `offset`.
    pub fn array<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let mut buf = [0; N];
        (self.read(offset, &mut buf) == N).then_some(buf)
    }

    /// The bytes of `[offset, offset + len)` that exist; `None` if `len` is beyond all limits.
    pub fn bytes(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let total = match self {
            Source::File(file) => file.len().ok()?,
            Source::Memory(bytes) => bytes.len() as u64,
            Source::Pieces(pieces) => {
                let ends = pieces
                    .iter()
                    .map(|p| p.offset.saturating_add(p.bytes.len() as u64));
                ends.max().unwrap_or(0)
            }
        };
        let len = len.min(total.saturating_sub(offset));
        if len > MAX_TABLE {
            return None;
        }
        let mut buf = vec![0; usize::try_from(len).ok()?];
        let n = self.read(offset, &mut buf);
        buf.truncate(n);
        Some(buf)
    }
}

/// Copies what there is of `bytes` from `offset` on; returns how much.
fn read_from(bytes: &[u8], offset: u64, buf: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|o| bytes.get(o..));
    let rest = rest.unwrap_or_default();
    let n = rest.len().min(buf.len());
    for (to, from) in buf.iter_mut().zip(rest) {
        *to = *from;
    }
    n
}

/// A PT_LOAD program header.
#[derive(Clone, Copy, Debug)]
struct Load {
    svma: u64,
    offset: u64,
    file_size: u64,
    executable: bool,
}

/// A run of a file's bytes that has addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    /// ELF virtual address of its first byte; 0 for sections that are not loaded.
    pub svma: u64,
    /// Where it lies in the file, bytes.
    pub offset: u64,
    /// Its size, bytes.
    pub size: u64,
}

/// Segments and what they lead to.
#[derive(Debug, Default)]
pub(super) struct Layout {
    loads: Vec<Load>,
    /// PT_GNU_EH_FRAME.
    pub eh_frame_hdr: Option<Section>,
    /// The GNU build id; empty if there is none.
    pub build_id: Vec<u8>,
    /// Where the program starts, if it is one.
    pub entry: u64,
    /// Offset and number of section headers, and the index of the one with their names.
    sections: Option<(u64, u16, u16)>,
}

impl Layout {
    /// Reads the ELF and program headers; `None` if it is not an ELF file of our kind.
    pub fn read(source: &Source) -> Option<Layout> {
        let header: [u8; 64] = source.array(0)?;
        if header.starts_with(b"\x7fELF\x02\x01") {
            let table = (u64_at(&header, 32)?, u16_at(&header, 56)?);
            let entry = usize::from(u16_at(&header, 54)?);
            let mut layout = Layout::from_segments(source, table, entry, segment_64)?;
            layout.entry = u64_at(&header, 24)?;
            if u16_at(&header, 58)? == 64 {
                layout.sections = Some((
                    u64_at(&header, 40)?,
                    u16_at(&header, 60)?,
                    u16_at(&header, 62)?,
                ));
            }
            Some(layout)
        } else if header.starts_with(b"\x7fELF\x01\x01") {
            let table = (u64::from(u32_at(&header, 28)?), u16_at(&header, 44)?);
            let entry = usize::from(u16_at(&header, 42)?);
            let mut layout = Layout::from_segments(source, table, entry, segment_32)?;
            layout.eh_frame_hdr = None;
            Some(layout)
        } else {
            None
        }
    }

    /// Reads a table of `(offset, count)` program headers of `size` bytes each.
    fn from_segments(
        source: &Source,
        (table, count): (u64, u16),
        size: usize,
        segment: fn(&[u8]) -> Option<Segment>,
    ) -> Option<Layout> {
        let mut layout = Layout::default();
        let mut notes = Vec::new();
        let bytes = source.bytes(table, size as u64 * u64::from(count))?;
        for bytes in bytes.chunks_exact(size.max(1)) {
            let Segment {
                kind,
                flags,
                section,
            } = segment(bytes)?;
            match kind {
                PT_LOAD => layout.loads.push(Load {
                    svma: section.svma,
                    offset: section.offset,
                    file_size: section.size,
                    executable: flags & PF_X != 0,
                }),
                PT_NOTE => notes.push(section),
                PT_GNU_EH_FRAME => layout.eh_frame_hdr = Some(section),
                _ => {}
            }
        }
        layout.build_id = notes
            .iter()
            .filter_map(|note| source.bytes(note.offset, note.size.min(MAX_NOTES)))
            .find_map(|notes| build_id(&notes))
            .unwrap_or_default();
        Some(layout)
    }

    /// The section called `name`, if the file has section headers and it is there as plain bytes.
    pub fn section(&self, source: &Source, name: &[u8]) -> Option<Section> {
        let (section, packed) = self.find_section(source, name)?;
        (!packed).then_some(section)
    }

    /// The bytes of the section called `name`, unpacked if they are compressed.
    pub fn contents(&self, source: &Source, name: &[u8]) -> Option<Vec<u8>> {
        let (section, packed) = self.find_section(source, name)?;
        let bytes = source.bytes(section.offset, section.size)?;
        match packed {
            false => Some(bytes),
            true => unpacked(&bytes),
        }
    }

    /// The ELF virtual address of the section called `name`.
    pub fn section_svma(&self, source: &Source, name: &[u8]) -> Option<u64> {
        Some(self.find_section(source, name)?.0.svma)
    }

    /// The ELF virtual address that the loader puts at `svma`, if it puts one there.
    pub fn relocated(&self, source: &Source, svma: u64) -> Option<u64> {
        let table = [&b".rela.dyn"[..], b".rela"];
        let mut tables = table
            .into_iter()
            .filter_map(|name| self.contents(source, name));
        tables.find_map(|table| {
            let (entries, _) = table.as_chunks::<24>();
            let entry = entries
                .iter()
                .find(|entry| u64_at(*entry, 0) == Some(svma))?;
            let is_relative = u32_at(entry, 8)? == R_X86_64_RELATIVE;
            is_relative.then(|| u64_at(entry, 16))?
        })
    }

    /// A section that has bytes in the file, and whether those are compressed.
    fn find_section(&self, source: &Source, name: &[u8]) -> Option<(Section, bool)> {
        let (table, count, names) = self.sections?;
        let headers = source.bytes(table, 64 * u64::from(count))?;
        let place = |header: &[u8]| {
            Some(Section {
                svma: u64_at(header, 16)?,
                offset: u64_at(header, 24)?,
                size: u64_at(header, 32)?,
            })
        };
        let names = place(headers.chunks_exact(64).nth(usize::from(names))?)?;
        let names = source.bytes(names.offset, names.size)?;
        let found = headers.chunks_exact(64).find(|header| {
            let at = u32_at(header, 0).and_then(|at| names.get(at as usize..));
            at.and_then(|rest| rest.strip_prefix(name))
                .is_some_and(|rest| rest.first() == Some(&0))
        })?;
        if u32_at(found, 4)? == SHT_NOBITS {
            return None;
        }
        Some((place(found)?, u64_at(found, 8)? & SHF_COMPRESSED != 0))
    }

    /// Where functions begin, by the symbols, ascending; `None` where there are none.
    pub fn functions(&self, source: &Source) -> Option<Vec<u64>> {
        Some(starts(&self.contents(source, b".symtab")?))
    }

    /// The same of the functions that others may call.
    pub fn exported_functions(&self, source: &Source) -> Option<Vec<u64>> {
        Some(starts(&self.contents(source, b".dynsym")?))
    }

    /// What an executable mapping of the file's bytes from `offset` on holds: the ELF virtual address
    /// of its first byte. Segments overlap in the pages where one ends and the next begins; the
    /// executable one is meant.
    pub fn svma_of(&self, offset: u64) -> Option<u64> {
        let holds = |load: &&Load| {
            let start = load.offset & !(PAGE - 1);
            let end = load.offset.saturating_add(load.file_size);
            (start..end).contains(&offset)
        };
        let mut loads = self.loads.iter().filter(holds);
        let first = loads.next()?;
        let load = if first.executable {
            first
        } else {
            loads.find(|load| load.executable).unwrap_or(first)
        };
        Some(load.svma.wrapping_add(offset.wrapping_sub(load.offset)))
    }

    /// Whether all of `[svma, svma + len)` is code.
    pub fn is_text(&self, svma: u64, len: u64) -> bool {
        self.loads.iter().any(|load| {
            let inside = svma.checked_sub(load.svma & !(PAGE - 1));
            let size = (load.svma % PAGE).saturating_add(load.file_size);
            let size = size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
            let fits = |inside: u64| inside.saturating_add(len) <= size;
            load.executable && inside.is_some_and(fits)
        })
    }

    /// Where the byte at `svma` lies in the file, and how many bytes of its segment follow.
    pub fn offset_of(&self, svma: u64) -> Option<(u64, u64)> {
        self.loads.iter().find_map(|load| {
            let inside = svma.checked_sub(load.svma)?;
            let rest = load
                .file_size
                .checked_sub(inside)
                .filter(|&rest| rest > 0)?;
            Some((load.offset.checked_add(inside)?, rest))
        })
    }
}

/// A program header.
struct Segment {
    kind: u32,
    flags: u32,
    section: Section,
}

fn segment_64(bytes: &[u8]) -> Option<Segment> {
    Some(Segment {
        kind: u32_at(bytes, 0)?,
        flags: u32_at(bytes, 4)?,
        section: Section {
            svma: u64_at(bytes, 16)?,
            offset: u64_at(bytes, 8)?,
            size: u64_at(bytes, 32)?,
        },
    })
}

fn segment_32(bytes: &[u8]) -> Option<Segment> {
    Some(Segment {
        kind: u32_at(bytes, 0)?,
        flags: u32_at(bytes, 24)?,
        section: Section {
            svma: u32_at(bytes, 8)?.into(),
            offset: u32_at(bytes, 4)?.into(),
            size: u32_at(bytes, 16)?.into(),
        },
    })
}

/// The addresses of functions in a table of symbols, ascending.
fn starts(symbols: &[u8]) -> Vec<u64> {
    let (symbols, _) = symbols.as_chunks::<24>();
    let start = |symbol: &[u8; 24]| {
        let kind = symbol.get(4)? & 15;
        let is_here = u16_at(symbol, 6)? != SHN_UNDEF;
        (is_here && matches!(kind, STT_FUNC | STT_GNU_IFUNC)).then(|| u64_at(symbol, 8))?
    };
    let mut starts: Vec<u64> = symbols.iter().filter_map(start).collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// What a compressed section holds: a header with the kind and the length, and a stream. The length is not
/// believed beyond [`MAX_TABLE`].
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let stream = bytes.get(24..)?;
    let limit = MAX_TABLE;
    let mut unpacked = Vec::new();
    match u32_at(bytes, 0)? {
        ELFCOMPRESS_ZLIB => flate2::read::ZlibDecoder::new(stream)
            .take(limit)
            .read_to_end(&mut unpacked)
            .ok()?,
        ELFCOMPRESS_ZSTD => zstd::stream::read::Decoder::with_buffer(stream)
            .ok()?
            .take(limit)
            .read_to_end(&mut unpacked)
            .ok()?,
        _ => return None,
    };
    Some(unpacked)
}

/// The build id in the bytes of a note segment.
fn build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    // Each note advances by 12 bytes at least.
    loop {
        let name_len = u32_at(notes, 0)? as usize;
        let desc_len = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let desc_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && (1..=MAX_BUILD_ID).contains(&desc_len) {
            return Some(desc.to_vec());
        }
        notes = notes.get(desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?..)?;
    }
}

/// The 16-bit number at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 32-bit number at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 64-bit number at `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
