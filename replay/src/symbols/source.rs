//! Which files may be asked for a module's names, best first.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

use maptrail_tracelog::record::FileInfo;

use super::Module;
use super::elf::{Exported, Facts, look_into};

/// Where distributions put debug information by build id.
const BUILD_ID_DIR: &str = "/usr/lib/debug/.build-id";

/// A file that may be asked.
#[derive(Debug)]
pub struct NameFile {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its debug information may be read.
    pub debug: bool,
    /// Its exported functions, where it has nothing better.
    pub exported: Vec<Exported>,
}

/// The files to ask for a module's names, best first: separate debug information, then the module
/// itself. Only files that are what ran.
pub fn sources(module: &Module<'_>) -> Vec<NameFile> {
    let own = own_file(module);
    let build_id = match &own {
        Some((_, facts)) if module.info.build_id.is_empty() => &facts.build_id,
        _ => &module.info.build_id,
    };
    let mut sources = Vec::new();
    if let Some(path) = debug_path(build_id)
        && let Ok(facts) = look_into(&path)
        && facts.build_id == *build_id
        && (facts.symtab || facts.debug)
    {
        sources.push(NameFile {
            debug: facts.debug,
            exported: Vec::new(),
            path,
        });
    }
    if let Some((path, facts)) = own {
        let debug = links_are_plain(&path, &facts);
        sources.push(NameFile {
            debug: debug && (facts.debug || facts.links.debug.is_some()),
            exported: facts.exported,
            path,
        });
    }
    sources
}

/// The module's own file, if it can still be had.
fn own_file(module: &Module<'_>) -> Option<(PathBuf, Facts)> {
    let path = Path::new(&module.file.path);
    let wanted = &module.info.build_id;
    if let Some(opened) = &module.opened
        && let Ok(facts) = look_into(opened)
        && (wanted.is_empty() || facts.build_id == *wanted)
    {
        // The true path is better if it still leads there: what lies next to it can be found.
        let same = path.is_absolute() && same_file(opened, path);
        return Some((
            if same {
                path.to_owned()
            } else {
                opened.clone()
            },
            facts,
        ));
    }
    if !path.is_absolute() {
        return None;
    }
    let facts = look_into(path).ok()?;
    let right = if wanted.is_empty() {
        facts.build_id.is_empty() && is_file(&path.metadata().ok()?, module.file)
    } else {
        facts.build_id == *wanted
    };
    right.then(|| (path.to_owned(), facts))
}

/// `/usr/lib/debug/.build-id/xx/yyyy.debug`.
fn debug_path(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id
        .split_first()
        .filter(|(_, rest)| !rest.is_empty())?;
    let hex: String = rest.iter().map(|b| format!("{b:02x}")).collect();
    Some(PathBuf::from(format!(
        "{BUILD_ID_DIR}/{first:02x}/{hex}.debug"
    )))
}

/// Whether what a file refers to can be followed without harm. A module of the target's may name
/// anything, such as a pipe whose opening never returns.
fn links_are_plain(path: &Path, facts: &Facts) -> bool {
    // Shared debug information (dwz) belongs to separate debug files, never to what runs.
    if facts.links.alt {
        return false;
    }
    let mut package = path.as_os_str().to_owned();
    package.push(".dwp");
    let mut referred = vec![PathBuf::from(package)];
    if let Some(name) = &facts.links.debug {
        if name.contains('/') {
            return false;
        }
        let dir = path.parent().unwrap_or(Path::new("/"));
        referred.extend([dir.join(name), dir.join(".debug").join(name)]);
    }
    let harmless = |p: &PathBuf| look_into(p).is_ok_and(|f| f.bounded && !f.links.alt);
    referred
        .iter()
        .all(|p| p.symlink_metadata().is_err() || harmless(p))
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
