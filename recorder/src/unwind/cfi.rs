//! Finds the call frame information (CFI) of an address in a module: `.eh_frame`, by the sorted table
//! in `.eh_frame_hdr` or by one of our own, and `.debug_frame` where that says nothing: the module's own
//! or that of its separate debug file.
//!
//! Only tables are kept in memory, and `.debug_frame`, which may be compressed. A function's description
//! (FDE) and the common part that it refers to (CIE) are read from the file when they are needed, which is
//! once per address: rules are cached.

use std::cell::OnceCell;

use gimli::{
    BaseAddresses, CieOrFde, DebugFrame, EhFrame, LittleEndian, UnwindOffset, UnwindSection,
};
use rustc_hash::FxHashMap;

use super::elf::{Layout, Section, Source, u32_at, u64_at};

/// The longest CIE or FDE that is looked at, in bytes.
const MAX_ENTRY: u32 = 256 << 10;
/// The most CIEs of one section that are looked at: `.debug_frame` has one for each object file.
const MAX_CIES: usize = 1 << 18;
/// Enough for nearly every entry, in bytes: one read brings its length and itself.
const USUAL_ENTRY: usize = 512;
/// Size of the header of `.eh_frame_hdr` with the encodings below, in bytes; the table follows.
const HDR_SIZE: usize = 12;

/// The bytes gimli reads from.
pub(super) type Slice<'a> = gimli::EndianSlice<'a, LittleEndian>;

/// The unwind information of one module.
#[derive(Debug)]
pub(super) struct Cfi {
    eh_frame: Option<Table>,
    /// Read when `.eh_frame` has nothing to say for the first time.
    debug_frame: OnceCell<Option<Table>>,
}

/// Opens the separate debug file of a module, if it has one.
pub(super) type OpenDebugFile<'a> = &'a dyn Fn() -> Option<&'a Source>;

/// Which of the two formats. They differ in how an FDE names its CIE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    EhFrame,
    DebugFrame,
}

/// One section of unwind information and a way to find an address in it.
#[derive(Debug)]
struct Table {
    kind: Kind,
    /// Where its bytes are, if not in the module's file as they are.
    unpacked: Option<Source>,
    section: Section,
    index: Index,
}

#[derive(Debug)]
enum Index {
    /// The table of `.eh_frame_hdr`: pairs of signed 32-bit numbers relative to the header, the start
    /// of a function and the place of its FDE.
    Linker { hdr_svma: u64, pairs: Vec<u8> },
    /// Start of a function and offset of its FDE in the section, sorted.
    Own(Vec<(u64, u64)>),
}

/// A CIE and an FDE that refers to it, copied from a file into the smallest section that holds both.
pub(super) struct Entry {
    /// The format that the copy is in.
    pub kind: Kind,
    /// The CIE and then the FDE.
    pub bytes: Vec<u8>,
    /// Where the FDE begins.
    pub fde: usize,
    /// For pointers that are relative to their own place.
    pub bases: BaseAddresses,
}

impl Cfi {
    /// Reads the tables of a module.
    pub fn load(source: &Source, layout: &Layout) -> Cfi {
        Cfi {
            eh_frame: eh_frame(source, layout),
            debug_frame: OnceCell::new(),
        }
    }

    /// Hands the entries that may describe the function at `svma` to `f`, until it takes one.
    pub fn find<T>(
        &self,
        source: &Source,
        layout: &Layout,
        separate: OpenDebugFile<'_>,
        svma: u64,
        mut f: impl FnMut(&Entry) -> Option<T>,
    ) -> Option<T> {
        let found = self
            .eh_frame
            .as_ref()
            .and_then(|table| f(&table.entry(source, svma)?));
        found.or_else(|| {
            let load = || {
                debug_frame(source, layout).or_else(|| {
                    let source = separate()?;
                    let layout = Layout::read(source)?;
                    debug_frame(source, &layout)
                })
            };
            let table = self.debug_frame.get_or_init(load).as_ref()?;
            f(&table.entry(source, svma)?)
        })
    }
}

fn eh_frame(source: &Source, layout: &Layout) -> Option<Table> {
    let by_name = || layout.section(source, b".eh_frame");
    let Some(hdr) = layout.eh_frame_hdr else {
        return own_table(source, Kind::EhFrame, by_name()?);
    };
    let bytes = source.bytes(hdr.offset, hdr.size)?;
    // What every linker writes: version 1, the section pcrel|sdata4, the count udata4, the table
    // datarel|sdata4. Anything else is found by name and gets a table of our own.
    let usual = bytes.starts_with(&[1, 0x1b]);
    let section = if usual {
        let relative = u32_at(&bytes, 4)?.cast_signed();
        let svma = hdr
            .svma
            .wrapping_add(4)
            .wrapping_add_signed(relative.into());
        let (offset, size) = layout.offset_of(svma)?;
        Section { svma, offset, size }
    } else {
        by_name()?
    };
    if !usual || bytes.get(2..4) != Some(&[0x03, 0x3b]) {
        return own_table(source, Kind::EhFrame, section);
    }
    let count = u32_at(&bytes, 8)? as usize;
    let mut pairs = bytes;
    pairs.drain(..HDR_SIZE);
    pairs.truncate(count.checked_mul(8)?);
    Some(Table {
        kind: Kind::EhFrame,
        unpacked: None,
        section,
        index: Index::Linker {
            hdr_svma: hdr.svma,
            pairs,
        },
    })
}

fn debug_frame(source: &Source, layout: &Layout) -> Option<Table> {
    let bytes = layout.contents(source, b".debug_frame")?;
    let section = Section {
        svma: 0,
        offset: 0,
        size: bytes.len() as u64,
    };
    Some(Table {
        index: own_index(&bytes, Kind::DebugFrame, section),
        kind: Kind::DebugFrame,
        unpacked: Some(Source::Memory(bytes.into())),
        section,
    })
}

/// Reads a whole section once, to know where each function's FDE is.
fn own_table(source: &Source, kind: Kind, section: Section) -> Option<Table> {
    let bytes = source.bytes(section.offset, section.size)?;
    Some(Table {
        kind,
        unpacked: None,
        section,
        index: own_index(&bytes, kind, section),
    })
}

fn own_index(bytes: &[u8], kind: Kind, section: Section) -> Index {
    let bases = BaseAddresses::default().set_eh_frame(section.svma);
    let mut cies = Cies::of(bytes);
    let mut index = match kind {
        Kind::EhFrame => scan(&EhFrame::new(bytes, LittleEndian), &bases, &mut cies),
        Kind::DebugFrame => {
            let mut frame = DebugFrame::new(bytes, LittleEndian);
            frame.set_address_size(8);
            scan(&frame, &bases, &mut cies)
        }
    };
    index.sort_unstable();
    Index::Own(index)
}

/// Start address and section offset of every FDE up to the first entry that cannot be read.
fn scan<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    cies: &mut Cies<'a>,
) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let fde = partial.parse(|section, bases, offset| {
            let cie = cies.get(section, bases, offset);
            cie.ok_or(gimli::Error::NoUnwindInfoForAddress)
        });
        if let Ok(fde) = fde {
            found.push((fde.initial_address(), fde.offset() as u64));
        }
    }
    found
}

type Cie<'a> = gimli::CommonInformationEntry<Slice<'a>>;

/// The CIEs of one section, each parsed once, whatever comes of it: millions of FDEs may name one.
struct Cies<'a> {
    bytes: &'a [u8],
    known: FxHashMap<usize, Option<Cie<'a>>>,
    /// Bytes left to parse. CIEs do not overlap, so that all of them are no longer than the section.
    room: usize,
}

impl<'a> Cies<'a> {
    fn of(bytes: &'a [u8]) -> Cies<'a> {
        Cies {
            bytes,
            known: FxHashMap::default(),
            room: bytes.len(),
        }
    }

    /// The CIE at `offset`, unless it makes no sense or is more than there should be.
    fn get<S: UnwindSection<Slice<'a>>>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        offset: S::Offset,
    ) -> Option<Cie<'a>> {
        let at = UnwindOffset::into(offset);
        if let Some(known) = self.known.get(&at) {
            return known.clone();
        }
        if self.known.len() == MAX_CIES {
            return None;
        }
        let length = u32_at(self.bytes, at).filter(|&n| n <= MAX_ENTRY);
        let cie = length
            .and_then(|n| self.room.checked_sub(n as usize))
            .and_then(|left| {
                self.room = left;
                section.cie_from_offset(bases, offset).ok()
            });
        self.known.insert(at, cie.clone());
        cie
    }
}

impl Table {
    /// The entry of the last function that starts at or below `svma`, which need not reach up to it.
    fn entry(&self, source: &Source, svma: u64) -> Option<Entry> {
        let source = self.unpacked.as_ref().unwrap_or(source);
        let fde = self.fde_offset(svma)?;
        let (fde_bytes, cie) = match self.kind {
            Kind::EhFrame => {
                let bytes = self.read(source, fde)?;
                let back = u32_at(&bytes, 4)?;
                (bytes, fde.checked_add(4)?.checked_sub(u64::from(back))?)
            }
            Kind::DebugFrame => {
                let bytes = self.read(source, fde)?;
                let cie = u32_at(&bytes, 4)?;
                (bytes, u64::from(cie))
            }
        };
        let mut bytes = self.read(source, cie)?;
        let at = bytes.len();
        bytes.extend_from_slice(&fde_bytes);
        // The CIE now lies at 0: in `.eh_frame` that many bytes before the pointer to it, in
        // `.debug_frame` at offset 0.
        let pointer = match self.kind {
            Kind::EhFrame => u32::try_from(at.checked_add(4)?).ok()?,
            Kind::DebugFrame => 0,
        };
        let slot = bytes.get_mut(at + 4..)?.first_chunk_mut::<4>()?;
        *slot = pointer.to_le_bytes();
        let base = self.section.svma.wrapping_add(fde).wrapping_sub(at as u64);
        Some(Entry {
            kind: self.kind,
            bytes,
            fde: at,
            bases: BaseAddresses::default().set_eh_frame(base),
        })
    }

    /// Offset in the section.
    fn fde_offset(&self, svma: u64) -> Option<u64> {
        match &self.index {
            Index::Own(index) => {
                let after = index.partition_point(|&(start, _)| start <= svma);
                Some(index.get(after.checked_sub(1)?)?.1)
            }
            Index::Linker { hdr_svma, pairs } => {
                let (pairs, _) = pairs.as_chunks::<8>();
                let relative = svma.wrapping_sub(*hdr_svma).cast_signed();
                let start = |pair: &[u8; 8]| i64::from(u64::from_le_bytes(*pair) as i32);
                let after = pairs.partition_point(|pair| start(pair) <= relative);
                let pair = u64_at(pairs.get(after.checked_sub(1)?)?, 0)?;
                let fde = hdr_svma.wrapping_add_signed(i64::from((pair >> 32) as i32));
                fde.checked_sub(self.section.svma)
            }
        }
    }

    /// The bytes of the CIE or FDE at `offset` of the section.
    fn read(&self, source: &Source, offset: u64) -> Option<Vec<u8>> {
        let room = self.section.size.checked_sub(offset)?;
        let at = self.section.offset.checked_add(offset)?;
        let mut bytes = vec![0; USUAL_ENTRY];
        let n = source.read(at, &mut bytes);
        bytes.truncate(n);
        let length = u32_at(&bytes, 0)?;
        // 0 is the terminator; the largest values announce the 64-bit format, which nobody writes.
        if length == 0 || length > MAX_ENTRY || u64::from(length) + 4 > room {
            return None;
        }
        let total = length as usize + 4;
        if total > n {
            bytes.resize(total, 0);
            if source.read(at, &mut bytes) < total {
                return None;
            }
        }
        bytes.truncate(total);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `.eh_frame` in the making.
    #[derive(Default)]
    struct Bytes(Vec<u8>);

    /// Version 1, an augmentation string, alignments 1 and -8, return address in register 16, no
    /// augmentation data.
    fn cie(augmentation: &[u8]) -> Vec<u8> {
        entry(0, &[&[1], augmentation, &[0, 1, 0x78, 16, 0]].concat())
    }

    fn entry(id: u32, rest: &[u8]) -> Vec<u8> {
        let length = rest.len() as u32 + 4;
        [&length.to_le_bytes(), &id.to_le_bytes(), rest].concat()
    }

    impl Bytes {
        /// Returns where it begins.
        fn add(&mut self, entry: &[u8]) -> usize {
            self.0.extend_from_slice(entry);
            self.0.len() - entry.len()
        }

        /// A function of 16 bytes. Returns where its instructions begin.
        fn fde(&mut self, cie: usize, start: u64, instructions: &[u8]) -> usize {
            let back = self.0.len() + 4 - cie;
            let range = [start.to_le_bytes(), 16_u64.to_le_bytes()].concat();
            self.add(&entry(
                back as u32,
                &[&range, &[0][..], instructions].concat(),
            ));
            self.0.len() - instructions.len()
        }

        /// Start addresses of the functions that are found, and how many bytes of CIEs it took.
        fn scan(&self) -> (Vec<u64>, usize) {
            let mut cies = Cies::of(&self.0);
            let frame = EhFrame::new(&self.0, LittleEndian);
            let found = scan(&frame, &BaseAddresses::default(), &mut cies);
            let starts = found.into_iter().map(|(start, _)| start).collect();
            (starts, self.0.len() - cies.room)
        }
    }

    #[test]
    fn each_cie_is_parsed_once_whether_it_is_good_or_not() {
        let (good, bad) = (cie(b"zSSSSSSSS"), cie(&[b'?'; 9000]));
        let mut bytes = Bytes::default();
        let (one, two) = (bytes.add(&good), bytes.add(&good));
        // Where reading from entry to entry does not come upon it.
        let hidden = bytes.fde(one, 0, &bad);
        for i in 1..1000 {
            bytes.fde([one, hidden, two][i % 3], i as u64, &[]);
        }
        let (found, work) = bytes.scan();
        assert!(found.into_iter().eq((0..1000).filter(|i| i % 3 != 1)));
        assert_eq!(work, 2 * good.len() + bad.len() - 3 * 4);
    }

    #[test]
    fn a_cie_that_is_too_long_is_not_parsed() {
        let (good, long) = (
            cie(b"z"),
            cie(&[b"z", &[b'S'; MAX_ENTRY as usize][..]].concat()),
        );
        let mut bytes = Bytes::default();
        let (long, short) = (bytes.add(&long), bytes.add(&good));
        bytes.fde(long, 1, &[]);
        bytes.fde(short, 2, &[]);
        assert_eq!(bytes.scan(), (vec![2], good.len() - 4));
    }

    #[test]
    fn cies_that_overlap_are_parsed_up_to_the_size_of_the_section() {
        let mut bytes = Bytes::default();
        let good = bytes.add(&cie(b"z"));
        // At each fourth byte a CIE of 40,000 bytes might begin.
        let many = bytes.fde(good, 1, &40_000_u32.to_le_bytes().repeat(20_000));
        for i in 0..5000 {
            bytes.fde(many + 4 * i, 2, &[]);
        }
        let (found, work) = bytes.scan();
        assert_eq!(found, [1]);
        assert!(
            work > 40_000 && work <= bytes.0.len(),
            "{work} bytes parsed"
        );
    }
}
