//! Debug information as gimli reads it: bytes in memory, and so many reads and no more.
//!
//! What these parsers build grows with what they read, not with the file: a few bytes may be read over
//! and over, by ever more entries that refer to them. So each file gets a budget of reads in proportion
//! to its size; past it everything fails as if the file ended there.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use gimli::{Error, Reader, ReaderOffsetId, Result, RunTimeEndian};

/// How often a byte may be read, on average. Each is needed once by the check, once by the functions or
/// the lines, and sometimes for a name.
const READS_PER_BYTE: u64 = 8;
/// Reads that any file has: small ones refer to the same bytes often.
const READS_AT_LEAST: u64 = 1 << 20;
/// Reads that come on top for every question.
const READS_PER_QUESTION: u64 = 1 << 12;

/// The reads that are left for one file. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Rc<Cell<u64>>);

impl Budget {
    /// For a file that has no bytes yet.
    pub fn new() -> Budget {
        Budget(Rc::new(Cell::new(READS_AT_LEAST)))
    }

    fn add(&self, reads: u64) {
        self.0.set(self.0.get().saturating_add(reads));
    }

    /// One more question is asked.
    pub fn add_question(&self) {
        self.add(READS_PER_QUESTION);
    }

    /// Takes some; false if not so many are left.
    pub fn spend(&self, reads: usize) -> bool {
        let left = self.0.get().checked_sub(reads as u64);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }
}

/// Some bytes of a section. Cheap to clone.
#[derive(Clone)]
pub struct Bytes {
    section: Rc<Section>,
    at: usize,
    len: usize,
}

struct Section {
    bytes: Vec<u8>,
    endian: RunTimeEndian,
    budget: Budget,
}

impl Bytes {
    /// A whole section. It adds to the budget.
    pub fn new(bytes: Vec<u8>, endian: RunTimeEndian, budget: &Budget) -> Bytes {
        budget.add(READS_PER_BYTE.saturating_mul(bytes.len() as u64));
        Bytes {
            at: 0,
            len: bytes.len(),
            section: Rc::new(Section {
                bytes,
                endian,
                budget: budget.clone(),
            }),
        }
    }

    fn slice(&self) -> &[u8] {
        let end = self.at.saturating_add(self.len);
        self.section.bytes.get(self.at..end).unwrap_or_default()
    }

    fn spend(&self, reads: usize) -> Result<()> {
        match self.section.budget.spend(reads) {
            true => Ok(()),
            false => Err(self.end()),
        }
    }

    fn end(&self) -> Error {
        Error::UnexpectedEof(self.offset_id())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.len, self.at)
    }
}

impl Reader for Bytes {
    type Endian = RunTimeEndian;
    type Offset = usize;

    fn endian(&self) -> RunTimeEndian {
        self.section.endian
    }

    fn len(&self) -> usize {
        self.len
    }

    fn empty(&mut self) {
        self.len = 0;
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(self.end());
        }
        self.len = len;
        Ok(())
    }

    fn offset_from(&self, base: &Bytes) -> usize {
        self.at.saturating_sub(base.at)
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId((self.section.bytes.as_ptr() as u64).wrapping_add(self.at as u64))
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let offset = id.0.checked_sub(self.offset_id().0)?;
        usize::try_from(offset).ok().filter(|o| *o <= self.len)
    }

    fn find(&self, byte: u8) -> Result<usize> {
        let found = self.slice().iter().position(|b| *b == byte);
        self.spend(1 + found.unwrap_or(self.len) / 16)?;
        found.ok_or_else(|| self.end())
    }

    fn skip(&mut self, len: usize) -> Result<()> {
        self.spend(1)?;
        self.len = self.len.checked_sub(len).ok_or_else(|| self.end())?;
        self.at += len;
        Ok(())
    }

    fn split(&mut self, len: usize) -> Result<Bytes> {
        let mut head = self.clone();
        self.skip(len)?;
        head.len = len;
        Ok(head)
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>> {
        self.spend(1 + self.len / 16)?;
        Ok(self.slice().into())
    }

    fn to_string(&self) -> Result<Cow<'_, str>> {
        self.spend(1 + self.len / 16)?;
        let text = std::str::from_utf8(self.slice());
        text.map(Cow::from).map_err(|_| Error::BadUtf8)
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>> {
        self.spend(1 + self.len / 16)?;
        Ok(String::from_utf8_lossy(self.slice()))
    }

    fn read_slice(&mut self, into: &mut [u8]) -> Result<()> {
        let head = self.split(into.len())?;
        into.copy_from_slice(head.slice());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_when_the_budget_does() {
        let budget = Budget::new();
        let bytes = Bytes::new(vec![7; 64], RunTimeEndian::Little, &budget);
        let mut reads = 0;
        while bytes.clone().read_u8().is_ok() {
            reads += 1;
        }
        assert_eq!(reads, READS_AT_LEAST + 64 * READS_PER_BYTE);
        budget.add_question();
        assert_eq!(bytes.clone().read_u8(), Ok(7));
    }

    #[test]
    fn it_reads_what_gimlis_own_reader_does() {
        let data: Vec<u8> = (0..=255).collect();
        let mut ours = Bytes::new(data.clone(), RunTimeEndian::Big, &Budget::new());
        let mut theirs = gimli::EndianSlice::new(&data, RunTimeEndian::Big);
        let start = ours.clone();
        assert_eq!(ours.read_u32(), theirs.read_u32());
        assert_eq!(ours.find(0x20), Reader::find(&theirs, 0x20));
        assert!(ours.skip(3).is_ok() && theirs.skip(3).is_ok());
        assert_eq!(ours.read_uleb128(), theirs.read_uleb128());
        assert_eq!(ours.offset_from(&start), 8);
        assert_eq!(start.lookup_offset_id(ours.offset_id()), Some(8));
        assert_eq!(ours.lookup_offset_id(start.offset_id()), None);
        let (part, same) = (ours.split(5), Reader::split(&mut theirs, 5));
        assert_eq!(part.expect("enough").slice(), same.expect("enough").slice());
        assert!(ours.truncate(4).is_ok() && ours.truncate(5).is_err());
        assert!(ours.read_u64().is_err() && ours.skip(5).is_err());
        assert_eq!(ours.to_slice().expect("some").as_ref(), &data[13..17]);
    }
}
