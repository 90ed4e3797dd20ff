//! The file behind a mapping, as far as it is mapped: where it cannot be opened.
//!
//! Nobody but root may open what was deleted since (`/proc/PID/map_files`), and what lies in a mount
//! namespace that is gone nobody can. What unwinding needs of a file is mapped with its code.

use maptrail_tracelog::record::{FileInfo, Vma};
use maptrail_tracelog::types::{Perms, Tid};

use crate::maps::{FileTable, Maps};
use crate::proc;
use crate::sys::memory;
use crate::unwind::Piece;

/// Longest text that is kept, bytes: it is needed only where unwind information is missing.
const MAX_TEXT: u64 = 16 << 20;
/// Most that is kept of one file, bytes.
const MAX_TOTAL: u64 = 64 << 20;

/// The pieces of the file that `vma` maps, in a space that thread `tid` runs in. None if it is not mapped
/// from its beginning.
pub fn pieces(tid: Tid, info: &FileInfo, vma: &Vma) -> Vec<Piece> {
    let mut files = FileTable::default();
    let maps = proc::open_maps(tid).map(Maps::new);
    let all = maps
        .and_then(|maps| maps.all(&mut files))
        .unwrap_or_default();
    let is_it = |vma: &&Vma| {
        let file = files.info(vma.file);
        file.is_some_and(|file| (file.dev, file.inode) == (info.dev, info.inode))
    };
    let own: Vec<Vma> = all.iter().filter(is_it).copied().collect();
    // It may be mapped more than once.
    let begins = |other: &Vma| other.offset == 0 && other.range.start <= vma.range.start;
    let Some(first) = own.iter().rposition(begins) else {
        return Vec::new();
    };
    let mut total = 0;
    let mut pieces: Vec<Piece> = Vec::new();
    for vma in own.iter().skip(first) {
        let is_again = vma.offset == 0 && !pieces.is_empty();
        if is_again {
            break;
        }
        let length = vma.range.len();
        let is_read_only = vma.perms.0 & (Perms::R | Perms::W) == Perms::R;
        let is_text = vma.perms.executable() && length > MAX_TEXT;
        if !is_read_only || is_text || total + length > MAX_TOTAL {
            continue;
        }
        total += length;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        let read = memory::read(tid, vma.range.start.0, &mut bytes);
        bytes.truncate(read);
        pieces.push(Piece {
            offset: vma.offset,
            bytes: bytes.into(),
        });
    }
    pieces
}
