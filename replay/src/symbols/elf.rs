//! A first look into a module's file: is it the right one, is it safe to hand to the symboliser, and
//! what kinds of names does it have?
//!
//! The file belongs to the recorded program and is not trusted. Nothing here maps it into memory,
//! every read is bounded, and what would make the symboliser's libraries allocate without bound (a
//! section that unpacks to far more than it says, a table of a size that no linker makes) is found
//! here first. It does not resolve names, except from the dynamic symbols.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use object::elf::{
    ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, FileHeader32, FileHeader64, SHF_COMPRESSED, SHN_UNDEF,
    SHT_DYNSYM, SHT_NOBITS, SHT_NOTE, SHT_SYMTAB, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE,
};
use object::read::elf::{CompressionHeader, FileHeader, SectionHeader, Sym};
use object::{Endianness, FileKind, ReadCache};

/// A larger file is no module that anybody runs.
const MAX_FILE: u64 = 8 << 30;
/// A larger symbol table is a lie.
const MAX_TABLE: u64 = 1 << 30;
/// What all compressed sections of a file may unpack to. Beyond it the file's debug information is
/// left alone.
const MAX_UNPACKED: u64 = 2 << 30;
/// The longest section of notes that a build id is looked for in.
const MAX_NOTES: u64 = 1 << 20;

/// What a first look at a file found.
#[derive(Debug, Default)]
pub struct Facts {
    /// GNU build id; empty if it has none.
    pub build_id: Vec<u8>,
    /// It has a full symbol table.
    pub symtab: bool,
    /// It has debug information that is safe to read.
    pub debug: bool,
    /// Its compressed sections unpack to a size that can be borne.
    pub bounded: bool,
    /// The other files with debug information that it names.
    pub links: Links,
    /// Exported functions, ascending by address; only filled where there is nothing better.
    pub exported: Vec<Exported>,
}

/// Names of other files inside a file.
#[derive(Debug, Default)]
pub struct Links {
    /// `.gnu_debuglink`.
    pub debug: Option<String>,
    /// `.gnu_debugaltlink` is there.
    pub alt: bool,
}

/// A function in the dynamic symbol table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exported {
    /// Its ELF virtual address.
    pub address: u64,
    /// Its length in bytes; 0 if the file does not say.
    pub size: u64,
    /// Its name as the linker knows it.
    pub name: String,
}

/// Looks into a file.
///
/// # Errors
/// If it cannot be opened or is no ELF file that a loader would take.
pub fn look_into(path: &Path) -> io::Result<Facts> {
    // Asked before it is opened: opening a pipe would wait for its other end.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(io::Error::other("not a regular file of a sensible size"));
    }
    let data = ReadCache::new(file.try_clone()?);
    match FileKind::parse(&data) {
        Ok(FileKind::Elf64) => facts::<FileHeader64<Endianness>>(&data, &file),
        Ok(FileKind::Elf32) => facts::<FileHeader32<Endianness>>(&data, &file),
        _ => Err(io::Error::other("not an ELF file")),
    }
}

fn facts<Elf>(data: &ReadCache<File>, file: &File) -> io::Result<Facts>
where
    Elf: FileHeader<Endian = Endianness>,
{
    let header = Elf::parse(data).map_err(io::Error::other)?;
    let endian = header.endian().map_err(io::Error::other)?;
    let sections = header.sections(endian, data).map_err(io::Error::other)?;
    let mut facts = Facts::default();
    let mut budget = MAX_UNPACKED;
    let mut dynamic = None;
    facts.bounded = true;
    for section in sections.iter() {
        let name = sections.section_name(endian, section).unwrap_or_default();
        let size = section.sh_size(endian).into();
        let kind = section.sh_type(endian);
        match kind {
            SHT_NOTE if facts.build_id.is_empty() && size <= MAX_NOTES => {
                facts.build_id = build_id::<Elf>(section, endian, data).unwrap_or_default();
            }
            SHT_SYMTAB if size > MAX_TABLE => return Err(io::Error::other("absurd symbol table")),
            SHT_SYMTAB => facts.symtab = size > 0,
            SHT_DYNSYM if size <= MAX_TABLE => dynamic = Some(section),
            _ => {}
        }
        match name {
            b".debug_info" => facts.debug = kind != SHT_NOBITS && size > 0,
            b".gnu_debugaltlink" => facts.links.alt = true,
            b".gnu_debuglink" if size <= 4096 => {
                let bytes = section.data(endian, data).unwrap_or_default();
                let name = bytes.split(|&b| b == 0).next().unwrap_or_default();
                facts.links.debug = Some(String::from_utf8_lossy(name).into_owned());
            }
            _ => {}
        }
        if section.sh_flags(endian).contains(SHF_COMPRESSED) && facts.bounded {
            facts.bounded = unpacks_within::<Elf>(section, endian, data, file, &mut budget);
        }
    }
    facts.debug &= facts.bounded;
    if let (Some(section), false) = (dynamic, facts.symtab || facts.debug) {
        facts.exported = exported::<Elf>(section, endian, data, &sections).unwrap_or_default();
    }
    Ok(facts)
}

fn build_id<Elf: FileHeader<Endian = Endianness>>(
    section: &Elf::SectionHeader,
    endian: Endianness,
    data: &ReadCache<File>,
) -> Option<Vec<u8>> {
    let mut notes = section.notes(endian, data).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"GNU" && note.n_type(endian) == object::elf::NT_GNU_BUILD_ID {
            return Some(note.desc().to_vec());
        }
    }
    None
}

/// Unpacks a compressed section into nothing, to learn that it fits the budget. What its header says
/// is not believed.
fn unpacks_within<Elf: FileHeader<Endian = Endianness>>(
    section: &Elf::SectionHeader,
    endian: Endianness,
    data: &ReadCache<File>,
    file: &File,
    budget: &mut u64,
) -> bool {
    let Ok(Some((header, offset, length))) = section.compression(endian, data) else {
        return false;
    };
    let claimed: u64 = header.ch_size(endian).into();
    if claimed > *budget {
        return false;
    }
    let mut packed = file;
    if packed.seek(SeekFrom::Start(offset)).is_err() {
        return false;
    }
    let packed = io::BufReader::new(packed.take(length));
    let limit = budget.saturating_add(1);
    let unpacked = match header.ch_type(endian) {
        ELFCOMPRESS_ZLIB => count(flate2::bufread::ZlibDecoder::new(packed), limit),
        ELFCOMPRESS_ZSTD => {
            zstd::stream::read::Decoder::with_buffer(packed).and_then(|d| count(d, limit))
        }
        _ => return false,
    };
    match unpacked.map(|n| budget.checked_sub(n)) {
        Ok(Some(rest)) => {
            *budget = rest;
            true
        }
        _ => false,
    }
}

fn count(from: impl Read, limit: u64) -> io::Result<u64> {
    io::copy(&mut from.take(limit), &mut io::sink())
}

fn exported<'data, Elf: FileHeader<Endian = Endianness>>(
    section: &Elf::SectionHeader,
    endian: Endianness,
    data: &'data ReadCache<File>,
    sections: &object::read::elf::SectionTable<'data, Elf, &'data ReadCache<File>>,
) -> Option<Vec<Exported>> {
    let symbols: &[Elf::Sym] = section.data_as_array(endian, data).ok()?;
    let index = object::SectionIndex(section.sh_link(endian) as usize);
    let strings = sections.strings(endian, data, index).ok()?;
    let mut found: Vec<Exported> = symbols
        .iter()
        .filter(|s| s.st_shndx(endian) != SHN_UNDEF)
        .filter(|s| matches!(s.st_type(), STT_FUNC | STT_GNU_IFUNC | STT_NOTYPE))
        .filter_map(|s| {
            let name = s.name(endian, strings).ok().filter(|n| !n.is_empty())?;
            Some(Exported {
                address: s.st_value(endian).into(),
                size: s.st_size(endian).into(),
                name: String::from_utf8_lossy(name).into_owned(),
            })
        })
        .collect();
    found.sort_unstable();
    Some(found)
}
