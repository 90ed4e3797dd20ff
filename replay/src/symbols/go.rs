//! Names in Go programs: the table that the Go runtime unwinds and panics with.
//!
//! Stripping takes symbols and debug information from a Go program, but never this table (the section
//! `.gopclntab`): it has every function's name, and file and line of every instruction. The layouts of
//! Go 1.16, 1.18 and 1.20 are read, which later ones kept. Where the compiler inlined a function, file
//! and line are the inlined one's, the name is that of the function around it.
//!
//! The bytes are not trusted. Nothing is built from them ahead: each question looks into them, and every
//! loop in it ends with the bytes or earlier.

use super::elf::Image;

/// A larger table is no linker's.
const MAX_TABLE: u64 = 1 << 30;
/// The longest name or path.
const MAX_TEXT: usize = 4096;
/// The longest table of steps of one function, in bytes.
const MAX_STEPS: usize = 1 << 20;

/// The table of one Go program.
#[derive(Debug)]
pub struct GoTable {
    bytes: Vec<u8>,
    layout: Layout,
    pointer: usize,
    functions: usize,
    /// The address that functions count from.
    text: u64,
    /// Where the parts begin: names, numbers of files by unit, paths, lines and files by instruction,
    /// and the functions.
    parts: [usize; 5],
    /// The shortest instruction.
    quantum: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Go 1.16: addresses are absolute.
    Absolute,
    /// Go 1.18 and later: addresses count from the beginning of the program's text.
    Relative,
}

/// A place in a Go program.
#[derive(Debug, PartialEq, Eq)]
pub struct GoPlace {
    /// The function, as Go calls it: `main.(*Pool).grow`.
    pub function: String,
    /// The source file.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
}

const NAMES: usize = 0;
const UNITS: usize = 1;
const FILES: usize = 2;
const VALUES: usize = 3;
const FUNCTIONS: usize = 4;

impl GoTable {
    /// Reads a program's table, if it has one of a known layout.
    pub fn load(image: &Image) -> Option<GoTable> {
        let names = [".gopclntab", ".data.rel.ro.gopclntab"];
        let section = names.iter().find_map(|name| image.section(name))?;
        let bytes = image.bytes(section, MAX_TABLE)?;
        GoTable::parse(bytes, |field| {
            image.relocated(section.address.checked_add(field as u64)?)
        })
    }

    /// `relocated` gives what the loader puts into the field at an offset into the table.
    fn parse(bytes: Vec<u8>, relocated: impl Fn(usize) -> Option<u64>) -> Option<GoTable> {
        // Magic, two zeroes, the shortest instruction, the length of a pointer.
        let layout = match (bytes.get(..6)?, bytes.get(6)?) {
            ([0xfa, 0xff, 0xff, 0xff, 0, 0], 1 | 2 | 4) => Layout::Absolute,
            ([0xf0 | 0xf1, 0xff, 0xff, 0xff, 0, 0], 1 | 2 | 4) => Layout::Relative,
            _ => return None,
        };
        let mut table = GoTable {
            layout,
            quantum: u64::from(*bytes.get(6)?),
            pointer: usize::from(*bytes.get(7).filter(|p| matches!(p, 4 | 8))?),
            functions: 0,
            text: 0,
            parts: [0; 5],
            bytes,
        };
        let field = |n: usize| table.number(8 + n * table.pointer, table.pointer);
        let functions = usize::try_from(field(0)?).ok()?;
        let (text, first) = match layout {
            Layout::Absolute => (0, 2),
            Layout::Relative => (field(2)?, 3),
        };
        let mut parts = [0; 5];
        for (n, part) in parts.iter_mut().enumerate() {
            *part = usize::try_from(field(first + n)?).ok()?;
        }
        let text = match (layout, text) {
            // The loader fills it in, where the program may be loaded anywhere.
            (Layout::Relative, 0) => relocated(8 + 2 * table.pointer)?,
            (_, text) => text,
        };
        (table.functions, table.text, table.parts) = (functions, text, parts);
        // The last entry is the end of the last function.
        table.entry(functions)?;
        Some(table)
    }

    fn number(&self, at: usize, length: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(length)?)?;
        let mut whole = [0; 8];
        whole.get_mut(..length)?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(whole))
    }

    /// A word of 32 bits in a part.
    fn word(&self, part: usize, at: usize) -> Option<u32> {
        let at = self.parts.get(part)?.checked_add(at)?;
        u32::try_from(self.number(at, 4)?).ok()
    }

    /// Text that ends with a zero.
    fn text(&self, part: usize, at: u32) -> Option<String> {
        let at = self
            .parts
            .get(part)?
            .checked_add(usize::try_from(at).ok()?)?;
        let bytes = self.bytes.get(at..)?;
        let bytes = bytes.get(..MAX_TEXT).unwrap_or(bytes);
        let text = bytes.get(..bytes.iter().position(|b| *b == 0)?)?;
        (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }

    /// Where the `n`th function begins, and where more about it stands.
    fn entry(&self, n: usize) -> Option<(u64, usize)> {
        let width = match self.layout {
            Layout::Absolute => self.pointer,
            Layout::Relative => 4,
        };
        let at = n.checked_mul(2 * width)?;
        let at = self.parts[FUNCTIONS].checked_add(at)?;
        let begin = self.text.checked_add(self.number(at, width)?)?;
        // Behind the last one's end stands nothing more.
        let more = self.number(at + width, width).unwrap_or(0);
        Some((begin, usize::try_from(more).ok()?))
    }

    /// What is known of a place.
    pub fn find(&self, place: u64) -> Option<GoPlace> {
        let (mut low, mut high) = (0, self.functions);
        if place < self.entry(0)?.0 || place >= self.entry(self.functions)?.0 {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.entry(middle)?.0 <= place {
                true => low = middle,
                false => high = middle,
            }
        }
        let (begin, more) = self.entry(low)?;
        // The function's beginning again; then words: name, arguments, deferreturn, stack depths,
        // files, lines, number of other tables, unit.
        let first = match self.layout {
            Layout::Absolute => self.pointer,
            Layout::Relative => 4,
        };
        let word = |n: usize| self.word(FUNCTIONS, more.checked_add(first + 4 * n)?);
        let function = self.text(NAMES, word(0)?)?;
        let value = |n: usize| u32::try_from(self.value(word(n)?, begin, place)?).ok();
        let file = || {
            let number = (word(7)?.checked_add(value(4)?)?) as usize;
            let at = self.word(UNITS, number.checked_mul(4)?)?;
            self.text(FILES, at)
        };
        // What has no line is the padding behind the function.
        let line = value(5)?;
        Some(GoPlace {
            function,
            file: file(),
            line: Some(line).filter(|line| *line > 0),
        })
    }

    /// The value at a place from a table of steps: by how much the value changes (zigzag), and after how
    /// many bytes of code.
    fn value(&self, table: u32, begin: u64, place: u64) -> Option<i64> {
        if table == 0 {
            return None;
        }
        let start = self.parts[VALUES].checked_add(usize::try_from(table).ok()?)?;
        let mut steps = self.bytes.get(start..)?.iter().take(MAX_STEPS);
        let mut varint = || {
            let mut value = 0_u64;
            for shift in (0..35).step_by(7) {
                let byte = *steps.next()?;
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        };
        let (mut value, mut at) = (-1_i64, begin);
        loop {
            let change = varint()?;
            if change == 0 && at != begin {
                return None;
            }
            let half = i64::try_from(change >> 1).ok()?;
            value = value.checked_add(if change & 1 == 0 { half } else { !half })?;
            at = at.checked_add(varint()?.checked_mul(self.quantum)?)?;
            if place < at {
                return Some(value);
            }
        }
    }
}
