//! Go's own table of functions and frames, which even stripped programs carry: `.gopclntab`.
//!
//! It says for every instruction how far the stack pointer is from the return address, and which functions
//! nobody called or that leave their stack (`runtime/symtab.go` and `internal/abi` of Go's sources; layouts
//! of Go 1.16, 1.18 and 1.20 on).

use super::elf::{u32_at, u64_at};

/// `FuncFlagTopFrame` and `FuncFlagSPWrite` of internal/abi/symtab.go.
const TOP_FRAME: u8 = 1;
const SP_WRITE: u8 = 2;
/// Steps of one function's table of stack pointers after which it is given up.
const MAX_STEPS: usize = 1 << 16;

/// The table of one module.
#[derive(Debug)]
pub(super) struct GoTable {
    bytes: Vec<u8>,
    layout: Layout,
    /// How many functions there are.
    count: usize,
    /// Address of the first function.
    text: u64,
    /// Where the table of stack pointers and the like begins, ...
    steps: usize,
    /// ... and that of functions.
    functions: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Addresses of eight bytes (Go 1.16).
    Long,
    /// Offsets of four (Go 1.18).
    Short,
    /// And a line in each function (Go 1.20).
    WithLine,
}

/// What is known of a place in a function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// Nobody called this function.
    Top,
    /// The function leaves its stack.
    Leaves,
    /// The return address lies so many bytes above the stack pointer.
    Frame(u32),
}

impl GoTable {
    /// Reads the header. `relocated` says what the loader puts at an offset of the table: where the code
    /// begins, in programs that may lie anywhere.
    pub fn new(bytes: Vec<u8>, relocated: impl Fn(u64) -> Option<u64>) -> Option<GoTable> {
        let layout = match u32_at(&bytes, 0)? {
            0xffff_fffa => Layout::Long,
            0xffff_fff0 => Layout::Short,
            0xffff_fff1 => Layout::WithLine,
            _ => return None,
        };
        // Instructions begin at any byte, and pointers have eight.
        if bytes.get(6..8)? != [1, 8] {
            return None;
        }
        let word = |index: usize| u64_at(&bytes, 8 + 8 * index);
        let offset = |index| usize::try_from(word(index)?).ok();
        let (text, tables) = match layout {
            Layout::Long => (0, 5),
            _ => match word(2)? {
                0 => (relocated(24)?, 6),
                text => (text, 6),
            },
        };
        Some(GoTable {
            layout,
            count: offset(0)?,
            text,
            steps: offset(tables)?,
            functions: offset(tables + 1)?,
            bytes,
        })
    }

    /// What is known of the instruction at `svma`.
    pub fn at(&self, svma: u64) -> Option<Place> {
        let size = match self.layout {
            Layout::Long => 16,
            _ => 8,
        };
        let table = self.bytes.get(self.functions..)?;
        let entries = table.get(..self.count.checked_mul(size)?)?;
        let start = |at: usize| match self.layout {
            Layout::Long => u64_at(entries, at * size),
            _ => Some(self.text.wrapping_add(u32_at(entries, at * size)?.into())),
        };
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            match start(middle)? <= svma {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let index = low.checked_sub(1)?;
        // Behind the last function stands where it ends.
        let end = match self.layout {
            Layout::Long => u64_at(table, self.count * size)?,
            _ => self
                .text
                .wrapping_add(u32_at(table, self.count * size)?.into()),
        };
        if svma >= end {
            return None;
        }
        let entry = index * size + size / 2;
        let function = match self.layout {
            Layout::Long => usize::try_from(u64_at(entries, entry)?).ok()?,
            _ => u32_at(entries, entry)? as usize,
        };
        self.place(table.get(function..)?, start(index)?, svma)
    }

    /// The same of the `function` that begins at `start`.
    fn place(&self, function: &[u8], start: u64, svma: u64) -> Option<Place> {
        let (steps, flags) = match self.layout {
            Layout::Long => (20, 41),
            Layout::Short => (16, 37),
            Layout::WithLine => (16, 41),
        };
        let flags = *function.get(flags)?;
        if flags & TOP_FRAME != 0 {
            return Some(Place::Top);
        }
        if flags & SP_WRITE != 0 {
            return Some(Place::Leaves);
        }
        let steps = self.steps.checked_add(u32_at(function, steps)? as usize)?;
        let depth = depth_at(self.bytes.get(steps..)?, svma.checked_sub(start)?)?;
        Some(Place::Frame(depth))
    }
}

/// How deep the stack is `offset` bytes into a function: pairs of how much deeper it becomes, and for how
/// many bytes it stays so.
fn depth_at(mut steps: &[u8], offset: u64) -> Option<u32> {
    let (mut depth, mut end) = (-1_i64, 0_u64);
    for step in 0..MAX_STEPS {
        let change = varint(&mut steps)?;
        if change == 0 && step > 0 {
            return None;
        }
        depth = depth.checked_add((change >> 1).cast_signed() ^ -((change & 1).cast_signed()))?;
        end = end.checked_add(varint(&mut steps)?)?;
        if offset < end {
            return u32::try_from(depth).ok();
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_follow_one_another() {
        // From -1: +1 for 4 bytes, +0x28 for 10, -0x28 for 3.
        let steps = [2, 4, 0x50, 10, 0x4f, 3, 0];
        let depths: Vec<_> = [0, 3, 4, 13, 14, 16, 17]
            .map(|at| depth_at(&steps, at))
            .into();
        assert_eq!(
            depths,
            [Some(0), Some(0), Some(40), Some(40), Some(0), Some(0), None]
        );
        assert_eq!(depth_at(&steps[..3], 4), None);
        assert_eq!(depth_at(&[0x80; 20], 0), None);
    }

    #[test]
    fn a_table_is_read_and_a_damaged_one_is_not() {
        let mut bytes = vec![0; 0x100];
        let mut put = |at: usize, value: u64| {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(0, 0x0801_0000_ffff_fff1);
        put(8, 2);
        put(24, 0x40_0000);
        put(56, 0x50);
        put(64, 0x60);
        // Two functions, at 0 and 0x20, up to 0x40; both are described right behind.
        put(0x60, 0x20_0000_0000);
        put(0x68, 0x50_0000_0020);
        put(0x70, 0x40);
        bytes[0x50..0x54].copy_from_slice(&[2, 4, 0x10, 0x1c]);
        bytes[0x60 + 0x50 + 41] = TOP_FRAME;
        let table = GoTable::new(bytes.clone(), |_| None).unwrap();
        assert_eq!(table.at(0x3f_ffff), None);
        assert_eq!(table.at(0x40_0000), Some(Place::Frame(0)));
        assert_eq!(table.at(0x40_0004), Some(Place::Frame(8)));
        assert_eq!(table.at(0x40_0020), Some(Place::Top));
        assert_eq!(table.at(0x40_0040), None);
        bytes[24..32].fill(0);
        assert!(GoTable::new(bytes.clone(), |_| None).is_none());
        let moved = GoTable::new(bytes.clone(), |at| (at == 24).then_some(0x1000)).unwrap();
        assert_eq!(moved.at(0x1004), Some(Place::Frame(8)));
        for length in 0..bytes.len() {
            if let Some(table) = GoTable::new(bytes[..length].to_vec(), |_| Some(0x40_0000)) {
                table.at(0x40_0004);
                table.at(0x40_0020);
            }
        }
    }
}
