//! What stands behind mappings: the log's files by id, and when two ids mean the same inode.
//!
//! One inode can have several ids, because a name is part of an id and names change.

use maptrail_tracelog::record::FileInfo;
use maptrail_tracelog::types::FileId;
use rustc_hash::FxHashMap;

/// Device and inode, interned: equal keys are the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(u32);

impl FileKey {
    /// No inode: anonymous memory, whatever maps calls it (`[heap]`, `[stack]`, `[anon:...]`).
    pub const ANON: FileKey = FileKey(0);

    /// Whether no inode stands behind it, so that offsets mean nothing.
    #[must_use]
    pub fn is_anonymous(self) -> bool {
        self == FileKey::ANON
    }
}

/// The log's files.
#[derive(Clone, Debug, Default)]
pub struct Files {
    infos: FxHashMap<FileId, (FileKey, FileInfo)>,
    keys: FxHashMap<((u32, u32), u64), FileKey>,
}

impl Files {
    /// Takes a definition from the log. A second definition of an id replaces the first.
    pub fn define(&mut self, id: FileId, info: FileInfo) {
        let next = FileKey(u32::try_from(self.keys.len() + 1).unwrap_or(u32::MAX));
        let key = if info.inode == 0 && info.dev == (0, 0) {
            FileKey::ANON
        } else {
            *self.keys.entry((info.dev, info.inode)).or_insert(next)
        };
        self.infos.insert(id, (key, info));
    }

    /// The inode behind an id. An id that the log never defined is a file of its own kind, which is
    /// equal to no other: its key is that of its own id.
    #[must_use]
    pub fn key(&self, id: FileId) -> FileKey {
        if id == FileId::ANON {
            return FileKey::ANON;
        }
        match self.infos.get(&id) {
            Some((key, _)) => *key,
            None => FileKey(u32::MAX - id.0),
        }
    }

    /// The definition of an id.
    #[must_use]
    pub fn info(&self, id: FileId) -> Option<&FileInfo> {
        self.infos.get(&id).map(|(_, info)| info)
    }

    /// The name in maps; empty for anonymous memory and for ids that were never defined.
    #[must_use]
    pub fn path(&self, id: FileId) -> &str {
        self.info(id).map_or("", |info| info.path.as_str())
    }
}
