//! What the unwinder sees of the target's memory: a copy of the top of the stack, and further pieces
//! fetched when the copy misses.
//!
//! One bulk read serves most stacks. How much to read is learnt per thread: hand
//! [`StackCopy::wanted`] of one stop to [`StackCopy::fill`] at the thread's next.

/// The memory of a stopped target.
pub trait TargetMemory {
    /// Copies bytes from `addr` on into `buf`, and returns how many could be read: fewer than asked
    /// where the readable memory ends, 0 where nothing is.
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> usize;
}

/// What to ask for at a thread's first stop, in bytes.
pub const FIRST_READ: usize = 8 << 10;

/// The first read never shrinks below this, in bytes: the cost of less is the same.
const MIN_READ: usize = 2 << 10;
/// The first read never grows beyond this, in bytes.
const MAX_READ: usize = 64 << 10;
/// Read in addition to what the last stacks needed, in bytes, so that a little growth costs no
/// second read.
const SLACK: usize = 256;
/// Size of a further read, in bytes.
const CHUNK: usize = 16 << 10;
/// A further read starts this far below the missed address, in bytes: the registers that a frame
/// saved lie below its return address, which is what misses first.
const CHUNK_LEAD: u64 = 512;
/// Further reads of one stack, at most: its deepest needs fewer, unless it was made to need them.
const MAX_REFILLS: u32 = 2048;
const PAGE: u64 = 4096;

/// A reusable copy of the top of a thread's stack. One serves all threads of a tracer.
pub struct StackCopy {
    base: u64,
    /// What could be read.
    first: Vec<u8>,
    /// What the last [`StackCopy::fill`] was asked for.
    asked: usize,
    /// How much of the stack above `base` this unwinding has used so far.
    high: usize,
    chunk_base: u64,
    /// What could be read.
    chunk: Vec<u8>,
    /// How often more was read since the last [`StackCopy::fill`].
    refills: u32,
}

impl Default for StackCopy {
    fn default() -> StackCopy {
        StackCopy::new()
    }
}

impl StackCopy {
    /// An empty copy. Allocates all that it will ever use.
    #[must_use]
    pub fn new() -> StackCopy {
        StackCopy {
            base: 0,
            first: Vec::with_capacity(MAX_READ),
            asked: FIRST_READ,
            high: 0,
            chunk_base: 0,
            chunk: Vec::with_capacity(CHUNK),
            refills: 0,
        }
    }

    /// Forgets what it held and copies `wanted` bytes (within limits) from the stack pointer `sp` on.
    pub fn fill(&mut self, sp: u64, wanted: usize, mem: &mut impl TargetMemory) {
        let wanted = wanted.clamp(MIN_READ, MAX_READ);
        self.asked = wanted;
        self.base = sp;
        self.high = 0;
        self.chunk.clear();
        self.refills = 0;
        refill(&mut self.first, wanted, sp, mem);
    }

    /// How much to read at this thread's next stop, in bytes: grows at once to what was needed and
    /// shrinks slowly, so that alternating deep and shallow stacks settle on one read each.
    #[must_use]
    pub fn wanted(&self) -> usize {
        let need = (self.high + SLACK)
            .next_multiple_of(64)
            .clamp(MIN_READ, MAX_READ);
        if need >= self.asked {
            need
        } else {
            self.asked - (self.asked - need) / 8
        }
    }

    /// The eight bytes at `addr`; `None` if they cannot be read.
    #[inline]
    pub fn read_u64(&mut self, addr: u64, mem: &mut impl TargetMemory) -> Option<u64> {
        let offset = addr.wrapping_sub(self.base);
        match word(&self.first, offset) {
            Some(value) => Some(value),
            None => self.read_beyond(addr, mem),
        }
    }

    /// Notes that the frames below `addr` were needed.
    #[inline]
    pub(super) fn reach(&mut self, addr: u64) {
        let offset = addr.wrapping_sub(self.base);
        if offset <= MAX_READ as u64 {
            self.high = self.high.max(offset as usize);
        }
    }

    #[cold]
    fn read_beyond(&mut self, addr: u64, mem: &mut impl TargetMemory) -> Option<u64> {
        if let Some(value) = word(&self.chunk, addr.wrapping_sub(self.chunk_base)) {
            return Some(value);
        }
        // The page below may be a guard page; then the page of the address itself is where to start.
        for start in [addr.saturating_sub(CHUNK_LEAD), addr & !(PAGE - 1)] {
            if self.refills == MAX_REFILLS {
                break;
            }
            self.refills += 1;
            self.chunk_base = start;
            refill(&mut self.chunk, CHUNK, start, mem);
            if let Some(value) = word(&self.chunk, addr - start) {
                return Some(value);
            }
        }
        self.chunk.clear();
        None
    }
}

/// Makes `buf` what can be read of `len` bytes at `addr`.
fn refill(buf: &mut Vec<u8>, len: usize, addr: u64, mem: &mut impl TargetMemory) {
    // What was there before need not be zeroed: it is overwritten or cut off.
    buf.resize(len, 0);
    let read = mem.read(addr, buf);
    buf.truncate(read);
}

/// The little-endian word at `offset`.
#[inline]
fn word(bytes: &[u8], offset: u64) -> Option<u64> {
    let bytes = bytes.get(usize::try_from(offset).ok()?..)?;
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory from `start` on, counting reads.
    struct Flat {
        start: u64,
        bytes: Vec<u8>,
        reads: usize,
    }

    impl TargetMemory for Flat {
        fn read(&mut self, addr: u64, buf: &mut [u8]) -> usize {
            self.reads += 1;
            let Some(offset) = addr.checked_sub(self.start) else {
                return 0;
            };
            let Some(rest) = self.bytes.get(offset as usize..) else {
                return 0;
            };
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }
    }

    fn flat(start: u64, words: u64) -> Flat {
        Flat {
            start,
            bytes: (0..words)
                .flat_map(|i| (start + i * 8).to_le_bytes())
                .collect(),
            reads: 0,
        }
    }

    #[test]
    fn reads_through_the_copy_and_beyond_it() {
        let mut mem = flat(0x10000, 0x20000);
        let mut copy = StackCopy::new();
        copy.fill(0x10000, 4096, &mut mem);
        assert_eq!(copy.read_u64(0x10008, &mut mem), Some(0x10008));
        assert_eq!(mem.reads, 1);
        assert_eq!(copy.read_u64(0x20000, &mut mem), Some(0x20000));
        assert_eq!(copy.read_u64(0x20000 - 0x100, &mut mem), Some(0x1ff00));
        assert_eq!(mem.reads, 2, "what lies below a miss comes with it");
        assert_eq!(copy.read_u64(0x10000 - 8, &mut mem), None);
        assert_eq!(copy.read_u64(u64::MAX - 3, &mut mem), None);
    }

    #[test]
    fn a_miss_at_the_bottom_of_readable_memory_is_read() {
        let mut mem = flat(0x10000, 64);
        let mut copy = StackCopy::new();
        copy.fill(0x500_0000, 4096, &mut mem);
        assert_eq!(copy.read_u64(0x10010, &mut mem), Some(0x10010));
        assert_eq!(copy.read_u64(0x10000 + 63 * 8, &mut mem), Some(0x101f8));
        assert_eq!(copy.read_u64(0x10000 + 63 * 8 + 1, &mut mem), None);
    }

    #[test]
    fn the_first_read_grows_at_once_and_shrinks_slowly() {
        let mut mem = flat(0x10000, 0x20000);
        let mut copy = StackCopy::new();
        copy.fill(0x10000, FIRST_READ, &mut mem);
        copy.reach(0x10000 + 20_000);
        let wanted = copy.wanted();
        assert!((20_000..22_000).contains(&wanted), "{wanted}");
        let mut now = wanted;
        for _ in 0..100 {
            copy.fill(0x10000, now, &mut mem);
            copy.reach(0x10000 + 64);
            assert!(copy.wanted() <= now && copy.wanted() > now / 2);
            now = copy.wanted();
        }
        assert!(now < wanted / 2, "{now}");
    }
}
