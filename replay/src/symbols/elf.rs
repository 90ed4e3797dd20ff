//! Reads what is asked for of an ELF file: sections, symbols, its build id, the files that it refers to.
//!
//! The file belongs to the recorded program and is not trusted. It is never mapped into memory (who
//! cuts a mapped file kills its reader), every read is bounded by what the file holds, and packed
//! sections unpack to a bounded size, whatever their headers say.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;
use object::elf::{
    ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, FileHeader32, FileHeader64, NT_GNU_BUILD_ID,
    R_X86_64_RELATIVE, SHF_COMPRESSED, SHF_EXECINSTR, SHT_DYNSYM, SHT_NOBITS, SHT_NOTE, SHT_RELA,
    SHT_SYMTAB, STB_LOCAL, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, SectionType, SymbolBind,
    SymbolType,
};
use object::read::elf::{CompressionHeader, FileHeader, SectionHeader};
use object::{Endianness, FileKind, ReadCache, ReadCacheOps};

/// A larger file is no module that anybody runs.
const MAX_FILE: u64 = 8 << 30;
/// No linker makes more sections.
const MAX_SECTIONS: usize = 1 << 20;
/// A larger symbol table is a lie.
const MAX_TABLE: u64 = 1 << 30;
/// The longest section of notes that a build id is looked for in.
const MAX_NOTES: u64 = 1 << 20;
/// The longest reference to another file.
const MAX_LINK: u64 = 4096;
/// How often longer than their strings the names of all symbols may be together.
const MAX_SHARED: usize = 8;
/// The longest name of a symbol, bytes: those of C++ are cut long before.
const MAX_NAME: usize = 4096;
/// Debug information packs by a factor of three to six. Beyond this one it is a trap.
const MAX_PACKING: u64 = 64;
/// What unpacking a small symbol table may take beside it, KiB. `xz -9` takes 64 MiB.
const MAX_DICTIONARY_KIB: u32 = 128 << 10;

/// An open ELF file.
#[derive(Debug)]
pub struct Image {
    /// Where it was found.
    pub path: PathBuf,
    /// GNU build id; empty if it has none.
    pub build_id: Vec<u8>,
    /// The byte order of its numbers.
    pub endian: Endianness,
    /// Its addresses have 64 bits.
    pub is_64: bool,
    /// Its sections, in the file's order, so that symbols find theirs by number.
    pub sections: Vec<Section>,
    data: Data,
    length: u64,
}

/// Where an image's bytes are.
#[derive(Debug)]
enum Data {
    File(File),
    /// Inside of another file, unpacked.
    Memory(Vec<u8>),
}

/// A part of the file.
#[derive(Clone, Debug)]
pub struct Section {
    /// Such as `.text`.
    pub name: String,
    /// Its ELF virtual address; 0 if it is not loaded.
    pub address: u64,
    /// Its length: in memory, and in the file unless that has none of it.
    pub size: u64,
    /// It holds code.
    pub code: bool,
    kind: SectionType,
    offset: u64,
    link: usize,
    packing: Packing,
}

#[derive(Clone, Copy, Debug)]
enum Packing {
    Plain,
    Zlib,
    Zstd,
    Unknown,
}

/// What a file says of another one with debug information.
#[derive(Debug)]
pub struct Link<T> {
    /// Its name or path.
    pub name: String,
    /// What proves that it is the right one.
    pub proof: T,
}

/// A name for a piece of code.
#[derive(Debug)]
pub struct Symbol {
    /// Its ELF virtual address.
    pub address: u64,
    /// Its length in bytes; 0 if the file does not say.
    pub size: u64,
    /// Nobody outside of its source file sees it.
    pub local: bool,
    /// Its name as the linker knows it.
    pub name: String,
}

impl Image {
    /// Opens a file.
    ///
    /// # Errors
    /// If it is no regular file, or no ELF file that a loader would take.
    pub fn open(path: &Path) -> io::Result<Image> {
        // Asked before it is opened: opening a pipe would wait for its other end.
        if !path.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() > MAX_FILE {
            return Err(io::Error::other("not a regular file of a sensible size"));
        }
        Image::read(path, Data::File(file), meta.len())
    }

    /// The small symbol table that some distributions leave in stripped files: all functions that are not
    /// exported, packed (`.gnu_debugdata`).
    pub fn inner(&self) -> Option<Image> {
        let section = self.section(".gnu_debugdata")?;
        let packed = self.bytes(section, MAX_TABLE)?;
        let most = MAX_PACKING
            .saturating_mul(packed.len() as u64)
            .min(MAX_TABLE);
        let unpacked = XzReader::new_mem_limit(packed.as_slice(), false, MAX_DICTIONARY_KIB);
        let mut bytes = Vec::new();
        unpacked.take(most).read_to_end(&mut bytes).ok()?;
        let length = bytes.len() as u64;
        Image::read(&self.path, Data::Memory(bytes), length).ok()
    }

    fn read(path: &Path, data: Data, length: u64) -> io::Result<Image> {
        let (endian, is_64, sections) = match &data {
            Data::File(file) => all_sections(&ReadCache::new(file)),
            Data::Memory(bytes) => all_sections(&ReadCache::new(io::Cursor::new(bytes))),
        }
        .map_err(io::Error::other)?;
        let mut image = Image {
            path: path.to_owned(),
            build_id: Vec::new(),
            endian,
            is_64,
            sections,
            data,
            length,
        };
        image.build_id = image.read_build_id().unwrap_or_default();
        Ok(image)
    }

    /// The section of that name, if the file has any bytes of it.
    pub fn section(&self, name: &str) -> Option<&Section> {
        let mut sections = self.sections.iter();
        sections.find(|s| s.name == name && s.kind != SHT_NOBITS && s.size > 0)
    }

    /// A section's bytes, unpacked; `None` if they are damaged, or more than `most`.
    pub fn bytes(&self, section: &Section, most: u64) -> Option<Vec<u8>> {
        let end = section.offset.checked_add(section.size)?;
        if section.kind == SHT_NOBITS || end > self.length {
            return None;
        }
        let most = most.min(section.size.saturating_mul(MAX_PACKING));
        let packed = self.from(section.offset).ok()?.take(section.size);
        let mut bytes = Vec::new();
        let unpacked = match section.packing {
            Packing::Plain if section.size > most => return None,
            Packing::Plain => {
                bytes.reserve_exact(usize::try_from(section.size).ok()?);
                { packed }.read_to_end(&mut bytes)
            }
            Packing::Zlib => {
                let unpacked = flate2::bufread::ZlibDecoder::new(packed);
                unpacked
                    .take(most.saturating_add(1))
                    .read_to_end(&mut bytes)
            }
            Packing::Zstd => zstd::stream::read::Decoder::with_buffer(packed)
                .and_then(|d| d.take(most.saturating_add(1)).read_to_end(&mut bytes)),
            Packing::Unknown => return None,
        };
        (unpacked.is_ok() && bytes.len() as u64 <= most).then_some(bytes)
    }

    /// The file's own bytes from `offset` on.
    fn from(&self, offset: u64) -> io::Result<Box<dyn BufRead + '_>> {
        Ok(match &self.data {
            Data::File(file) => {
                let mut file = file;
                Seek::seek(&mut file, SeekFrom::Start(offset))?;
                Box::new(io::BufReader::new(file))
            }
            Data::Memory(bytes) => {
                let start = usize::try_from(offset).ok();
                let rest = start.and_then(|start| bytes.get(start..));
                Box::new(rest.unwrap_or_default())
            }
        })
    }

    /// A number of the file's, at a place in some of its bytes.
    fn number<const N: usize>(&self, bytes: &[u8], at: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(N)?)?;
        let shifted = |all: u64, byte: &u8| all << 8 | u64::from(*byte);
        Some(match self.endian {
            Endianness::Little => bytes.iter().rev().fold(0, shifted),
            Endianness::Big => bytes.iter().fold(0, shifted),
        })
    }

    /// The checksum that `.gnu_debuglink` knows the file by.
    pub fn checksum(&self) -> io::Result<u32> {
        let mut crc = flate2::Crc::new();
        let mut file = self.from(0)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(crc.sum()),
                n => crc.update(buffer.get(..n).unwrap_or_default()),
            }
        }
    }

    fn read_build_id(&self) -> Option<Vec<u8>> {
        let notes = self.sections.iter().filter(|s| s.kind == SHT_NOTE);
        notes
            .filter_map(|s| self.bytes(s, MAX_NOTES))
            .find_map(|notes| self.build_id_in(&notes))
    }

    fn build_id_in(&self, mut notes: &[u8]) -> Option<Vec<u8>> {
        // Owner's length, description's length, kind; then both, each up to a multiple of four.
        while !notes.is_empty() {
            let word = |at: usize| usize::try_from(self.number::<4>(notes, at)?).ok();
            let (owner, length, kind) = (word(0)?, word(4)?, self.number::<4>(notes, 8)?);
            let begin = 12 + owner.next_multiple_of(4);
            let description = notes.get(begin..)?;
            if kind == u64::from(NT_GNU_BUILD_ID.0) && notes.get(12..12 + owner)? == b"GNU\0" {
                return Some(description.get(..length)?.to_vec());
            }
            notes = description.get(length.next_multiple_of(4)..)?;
        }
        None
    }

    /// The separate file with this one's debug information, by name and checksum.
    pub fn debug_link(&self) -> Option<Link<u32>> {
        let link = self.link(".gnu_debuglink")?;
        // Name, zeroes up to a multiple of four, checksum.
        let at = (link.name.len() + 1).next_multiple_of(4) - (link.name.len() + 1);
        let proof = u32::try_from(self.number::<4>(&link.proof, at)?).ok()?;
        Some(Link {
            name: link.name,
            proof,
        })
    }

    /// The file that shares debug information with others, by name and build id.
    pub fn alt_link(&self) -> Option<Link<Vec<u8>>> {
        self.link(".gnu_debugaltlink")
    }

    fn link(&self, name: &str) -> Option<Link<Vec<u8>>> {
        let bytes = self.bytes(self.section(name)?, MAX_LINK)?;
        let end = bytes.iter().position(|&b| b == 0)?;
        let (name, proof) = bytes.split_at(end);
        Some(Link {
            name: std::str::from_utf8(name).ok()?.to_owned(),
            proof: proof.get(1..)?.to_vec(),
        })
    }

    /// Whether it says where code comes from.
    pub fn has_debug(&self) -> bool {
        self.section(".debug_info").is_some() || self.section(".zdebug_info").is_some()
    }

    /// Whether it has all names of the linker's, and not just those of its exports.
    pub fn has_symtab(&self) -> bool {
        let mut sections = self.sections.iter();
        sections.any(|s| s.kind == SHT_SYMTAB && s.size > 0)
    }

    /// All its names for code, exported or not; a damaged table has none.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol> {
        let tables = self.sections.iter();
        let tables = tables.filter(|s| matches!(s.kind, SHT_SYMTAB | SHT_DYNSYM));
        tables.flat_map(|table| self.table(table).unwrap_or_default())
    }

    /// What the loader of a program that may lie anywhere writes at an address, apart from where the
    /// program lies then.
    pub fn relocated(&self, address: u64) -> Option<u64> {
        if !self.is_64 {
            return None;
        }
        let tables = self.sections.iter().filter(|s| s.kind == SHT_RELA);
        tables
            .filter_map(|table| self.bytes(table, MAX_TABLE))
            .find_map(|table| {
                let mut entries = table.chunks_exact(24);
                let entry = entries.find(|entry| self.number::<8>(entry, 0) == Some(address))?;
                let relative = self.number::<4>(entry, 8)? == u64::from(R_X86_64_RELATIVE.0);
                relative.then(|| self.number::<8>(entry, 16))?
            })
    }

    fn table(&self, table: &Section) -> Option<Vec<Symbol>> {
        let strings = self.bytes(self.sections.get(table.link)?, MAX_TABLE)?;
        let symbols = self.bytes(table, MAX_TABLE)?;
        let entries = symbols.chunks_exact(if self.is_64 { 24 } else { 16 });
        let found = entries.filter_map(|entry| self.symbol(entry, &strings));
        // Names may share their ends, and a few have aliases; a table of which all is one name is a trap.
        let mut room = strings.len().saturating_mul(MAX_SHARED);
        let fits = |symbol: &Symbol| match room.checked_sub(symbol.name.len()) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        };
        Some(found.take_while(fits).collect())
    }

    fn symbol(&self, entry: &[u8], strings: &[u8]) -> Option<Symbol> {
        let (info, index, address, size) = if self.is_64 {
            let (address, size) = (self.number::<8>(entry, 8)?, self.number::<8>(entry, 16)?);
            (*entry.get(4)?, self.number::<2>(entry, 6)?, address, size)
        } else {
            let (address, size) = (self.number::<4>(entry, 4)?, self.number::<4>(entry, 8)?);
            (*entry.get(12)?, self.number::<2>(entry, 14)?, address, size)
        };
        // Assembly may come without a type; what lies in no code is no function then.
        let function = matches!(SymbolType(info & 0xf), STT_FUNC | STT_GNU_IFUNC);
        let untyped = SymbolType(info & 0xf) == STT_NOTYPE;
        let section = self.sections.get(usize::try_from(index).ok()?);
        if !(function || untyped) || !section.is_some_and(|s| s.code) {
            return None;
        }
        let name = usize::try_from(self.number::<4>(entry, 0)?).ok()?;
        let name = strings.get(name..)?;
        // All symbols may share one string; nobody reads the end of a longer name.
        let name = name.get(..name.len().min(MAX_NAME))?;
        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        let name = name.get(..end)?;
        if name.is_empty() {
            return None;
        }
        Some(Symbol {
            address,
            size,
            local: SymbolBind(info >> 4) == STB_LOCAL,
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }
}

/// A file's byte order, whether its addresses have 64 bits, and its sections.
fn all_sections<R: ReadCacheOps>(
    data: &ReadCache<R>,
) -> object::read::Result<(Endianness, bool, Vec<Section>)> {
    let is_64 = FileKind::parse(data)? == FileKind::Elf64;
    let (endian, sections) = match is_64 {
        true => sections::<FileHeader64<Endianness>, R>(data)?,
        // What is neither is refused there.
        false => sections::<FileHeader32<Endianness>, R>(data)?,
    };
    Ok((endian, is_64, sections))
}

fn sections<Elf, R>(data: &ReadCache<R>) -> object::read::Result<(Endianness, Vec<Section>)>
where
    Elf: FileHeader<Endian = Endianness>,
    R: ReadCacheOps,
{
    let header = Elf::parse(data)?;
    let endian = header.endian()?;
    let table = header.sections(endian, data)?;
    let sections = table.iter().take(MAX_SECTIONS).map(|section| {
        let name = table.section_name(endian, section).unwrap_or_default();
        let name = String::from_utf8_lossy(name.get(..64).unwrap_or(name)).into_owned();
        let flags = section.sh_flags(endian);
        let mut found = Section {
            address: section.sh_addr(endian).into(),
            size: section.sh_size(endian).into(),
            code: flags.contains(SHF_EXECINSTR),
            kind: section.sh_type(endian),
            offset: section.sh_offset(endian).into(),
            link: section.sh_link(endian) as usize,
            packing: Packing::Plain,
            name,
        };
        if flags.contains(SHF_COMPRESSED) {
            found.packing = Packing::Unknown;
            if let Ok(Some((header, offset, size))) = section.compression(endian, data) {
                (found.offset, found.size) = (offset, size);
                found.packing = match header.ch_type(endian) {
                    ELFCOMPRESS_ZLIB => Packing::Zlib,
                    ELFCOMPRESS_ZSTD => Packing::Zstd,
                    _ => Packing::Unknown,
                };
            }
        } else if found.name.starts_with(".zdebug_") {
            // The old way: "ZLIB" and the size that it unpacks to.
            found.packing = Packing::Zlib;
            found.offset = found.offset.saturating_add(12);
            found.size = found.size.saturating_sub(12);
        }
        found
    });
    Ok((endian, sections.collect()))
}
