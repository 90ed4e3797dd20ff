//! Which files may be asked for a module's names: those of this machine, or those below one folder.
//!
//! A file is only believed if it is the one that ran, or was made from it: same build id, or the same
//! device and inode where it has none, or the checksum that the module itself names. What a file names
//! is only followed to where debug information belongs, and only to regular files.

use std::fs::Metadata;
use std::path::{Component, Path, PathBuf};

use maptrail_tracelog::record::FileInfo;

use super::Module;
use super::elf::Image;

/// Where distributions put separate debug information.
const DEBUG_DIR: &str = "/usr/lib/debug";
/// Where it lies there by build id.
const BUILD_ID_DIR: &str = ".build-id";

/// Where files are looked for.
#[derive(Clone, Debug, Default)]
pub enum Places {
    /// Where this machine has them.
    #[default]
    Machine,
    /// Below a folder that stands for the recorded machine's root, or that has them by build id or by
    /// name; nowhere else.
    Below(PathBuf),
}

/// The files of one module.
#[derive(Debug, Default)]
pub struct Files {
    /// The module itself.
    pub own: Option<Image>,
    /// Its separate debug information.
    pub debug: Option<Image>,
    /// What the debug information shares with that of other modules (made by `dwz`).
    pub alt: Option<Image>,
    /// What was split off from the debug information (a `.dwp`).
    pub package: Option<Image>,
}

impl Places {
    /// Those below `dir`, in place of this machine's root.
    ///
    /// # Errors
    /// If it is no folder.
    pub fn below(dir: &Path) -> std::io::Result<Places> {
        let dir = dir.canonicalize()?;
        std::fs::read_dir(&dir)?;
        Ok(Places::Below(dir))
    }

    /// Finds the files of a module.
    pub fn find(&self, module: &Module<'_>) -> Files {
        let own = self.own(module);
        let build_id = match &own {
            Some(own) if module.info.build_id.is_empty() => &own.build_id,
            _ => &module.info.build_id,
        };
        let debug = self
            .debug_by_build_id(build_id)
            .or_else(|| self.debug_by_link(own.as_ref()?));
        // What runs is never packed by dwz: its link would lead wherever the program's author likes.
        let alt = debug.as_ref().and_then(|debug| self.alt(debug));
        let named = [own.as_ref(), debug.as_ref()];
        let package = named.into_iter().flatten().find_map(|image| {
            let mut path = image.path.clone().into_os_string();
            path.push(".dwp");
            self.open(Path::new(&path))
        });
        Files {
            own,
            debug,
            alt,
            package,
        }
    }

    /// Opens a file, if it is one of those that may be looked at.
    fn open(&self, path: &Path) -> Option<Image> {
        if let Places::Below(dir) = self {
            // No link leads out of it.
            path.canonicalize().ok().filter(|p| p.starts_with(dir))?;
        }
        Image::open(path).ok()
    }

    /// The path of the recorded machine, as it is reached here.
    fn here(&self, path: &Path) -> Option<PathBuf> {
        match self {
            Places::Machine => Some(path.to_owned()),
            Places::Below(dir) => {
                let below = path.strip_prefix("/").ok()?;
                let plain = below
                    .components()
                    .all(|c| matches!(c, Component::Normal(_)));
                plain.then(|| dir.join(below))
            }
        }
    }

    /// Where separate debug information lies.
    fn debug_dirs(&self) -> Vec<PathBuf> {
        match self {
            Places::Machine => vec![DEBUG_DIR.into()],
            Places::Below(dir) => vec![dir.join(DEBUG_DIR.trim_start_matches('/')), dir.clone()],
        }
    }

    /// The module's own file, if it can still be had.
    fn own(&self, module: &Module<'_>) -> Option<Image> {
        let path = Path::new(&module.file.path);
        let wanted = &module.info.build_id;
        if let Some(opened) = &module.opened
            && let Some(mut image) = self.open(opened)
            && (wanted.is_empty() || image.build_id == *wanted)
        {
            // The true path is better if it still leads there: what lies next to it can be found.
            if path.is_absolute() && same_file(opened, path) {
                image.path = path.to_owned();
            }
            return Some(image);
        }
        let right = |image: &Image| match (self, wanted.is_empty()) {
            (_, false) => image.build_id == *wanted,
            // Whoever names a folder says that it has the right files.
            (Places::Below(_), true) => image.build_id.is_empty(),
            (Places::Machine, true) => {
                let meta = image.path.metadata();
                image.build_id.is_empty() && meta.is_ok_and(|meta| is_file(&meta, module.file))
            }
        };
        let flat = match self {
            Places::Below(dir) if !wanted.is_empty() => path.file_name().map(|n| dir.join(n)),
            _ => None,
        };
        let paths = [path.is_absolute().then(|| self.here(path))?, flat];
        let mut images = paths.iter().flatten().filter_map(|path| self.open(path));
        images.find(right)
    }

    /// `.build-id/xx/yyyy.debug`.
    fn debug_by_build_id(&self, build_id: &[u8]) -> Option<Image> {
        let (first, rest) = build_id
            .split_first()
            .filter(|(_, rest)| !rest.is_empty())?;
        let hex: String = rest.iter().map(|b| format!("{b:02x}")).collect();
        let path = format!("{BUILD_ID_DIR}/{first:02x}/{hex}.debug");
        let dirs = self.debug_dirs();
        let mut images = dirs.iter().filter_map(|dir| self.open(&dir.join(&path)));
        images.find(|image| image.build_id == build_id && (image.has_debug() || image.has_symtab()))
    }

    /// The file that the module names by `.gnu_debuglink`: beside it, in `.debug` there, or at the same
    /// place below the folder for such files.
    fn debug_by_link(&self, own: &Image) -> Option<Image> {
        let link = own.debug_link()?;
        let mut parts = Path::new(&link.name).components();
        let plain =
            matches!(parts.next(), Some(Component::Normal(name)) if name == link.name.as_str());
        if !plain {
            return None;
        }
        let dir = own.path.parent()?;
        let true_dir = match self {
            Places::Machine => dir.strip_prefix("/"),
            Places::Below(below) => dir.strip_prefix(below),
        };
        let mut dirs = vec![dir.to_owned(), dir.join(".debug")];
        if let Ok(true_dir) = true_dir {
            dirs.extend(self.debug_dirs().iter().map(|debug| debug.join(true_dir)));
        }
        let mut images = dirs.iter().filter_map(|dir| {
            let path = dir.join(&link.name);
            // A module may name itself.
            (path != own.path).then(|| self.open(&path))?
        });
        images.find(|image| {
            let same_build = image.build_id.is_empty() || image.build_id == own.build_id;
            same_build && image.checksum().is_ok_and(|crc| crc == link.proof)
        })
    }

    /// The file that a debug file shares with others: by its path, below the folders for such files.
    fn alt(&self, debug: &Image) -> Option<Image> {
        let link = debug.alt_link()?;
        let name = Path::new(&link.name);
        let path = if name.is_absolute() {
            self.here(name)?
        } else {
            debug.path.parent()?.join(name)
        };
        let path = path.canonicalize().ok()?;
        let dirs = self.debug_dirs();
        let mut dirs = dirs.iter().filter_map(|dir| dir.canonicalize().ok());
        let image = dirs
            .any(|dir| path.starts_with(dir))
            .then(|| self.open(&path))??;
        (!link.proof.is_empty() && image.build_id == link.proof).then_some(image)
    }
}

#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |p: &Path| p.metadata().map(|m| (m.dev(), m.ino()));
    matches!((id(a), id(b)), (Ok(a), Ok(b)) if a == b)
}

/// Whether device and inode are those that maps showed. (Some file systems show another device there
/// than to `stat`; their files are then not believed.)
#[cfg(unix)]
fn is_file(meta: &Metadata, file: &FileInfo) -> bool {
    use std::os::unix::fs::MetadataExt;
    let dev = meta.dev();
    let major = ((dev >> 8) & 0xfff) | ((dev >> 32) & !0xfff);
    let minor = (dev & 0xff) | ((dev >> 12) & !0xff);
    (major, minor) == (u64::from(file.dev.0), u64::from(file.dev.1)) && meta.ino() == file.inode
}

#[cfg(not(unix))]
fn same_file(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(not(unix))]
fn is_file(_: &Metadata, _: &FileInfo) -> bool {
    false
}
