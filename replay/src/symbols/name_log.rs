//! Puts names into a finished log, so that it reads the same on a machine without the files.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use maptrail_tracelog::reader::{LogReader, OpenError};
use maptrail_tracelog::record::{Body, FileInfo, ModuleInfo, Name};
use maptrail_tracelog::types::{FileId, ModuleId};
use maptrail_tracelog::writer::{Chunk, LogWriter};
use rustc_hash::FxHashMap;

use super::{Module, Places, Symboliser, quality};

/// Why a log got no names.
#[derive(Debug, thiserror::Error)]
pub enum NameLogError {
    /// It cannot be opened for reading and writing.
    #[error("cannot open the log")]
    Open(#[from] OpenError),
    /// It cannot be read or written.
    #[error("cannot add names to the log")]
    Io(#[from] io::Error),
}

/// How naming a log went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Places in modules that the log's stacks go through.
    pub places: u64,
    /// Those of them that had a name before.
    pub before: u64,
    /// Those that have got one now, or a better one.
    pub added: u64,
}

/// What a log says of its modules and the places in them.
#[derive(Default)]
struct Asked {
    modules: BTreeMap<ModuleId, ModuleInfo>,
    files: FxHashMap<FileId, FileInfo>,
    lookups: BTreeMap<ModuleId, BTreeMap<u64, Option<Name>>>,
}

/// Names every frame of the log at `path` and appends the names to it, from files at `places`. `opened`
/// gives a path that leads to the very file of a module that ran, where the caller kept one open.
///
/// Names that the log has already stay, unless there are better ones now; so doing it twice does no harm.
///
/// # Errors
/// See [`NameLogError`]. The events of the log are not touched, whatever happens.
pub fn name_log(
    path: &Path,
    places: &Places,
    opened: impl Fn(ModuleId) -> Option<PathBuf>,
) -> Result<Named, NameLogError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(NameLogError::Io)?;
    let asked = collect(&mut LogReader::open(io::BufReader::new(&mut file))?)?;
    let mut done = Named::default();
    let mut found = Vec::new();
    for (id, lookups) in asked.lookups {
        done.places += lookups.len() as u64;
        done.before += lookups.values().flatten().count() as u64;
        let Some(info) = asked.modules.get(&id) else {
            continue;
        };
        let Some(file) = asked.files.get(&info.file) else {
            continue;
        };
        let module = Module {
            id,
            info,
            file,
            opened: opened(id),
        };
        let asked_for: Vec<u64> = lookups.keys().copied().collect();
        // What is known of one module is of no use for the next.
        let mut names = Symboliser::new(places.clone()).name(&module, &asked_for);
        names.retain(|name| {
            let old = lookups.get(&name.lookup).and_then(Option::as_ref);
            !name.frames.is_empty() && old.is_none_or(|old| quality(name) > quality(old))
        });
        done.added += names.len() as u64;
        found.extend(names);
    }
    // A log that learns nothing stays as it is.
    if !found.is_empty() {
        let mut writer = LogWriter::append(file)?;
        writer.write_names(&found)?;
        writer.finish()?;
    }
    Ok(done)
}

/// Reads the whole log for its modules, the places in them, and their names.
fn collect<R: io::Read + io::Seek>(reader: &mut LogReader<R>) -> io::Result<Asked> {
    let mut asked = Asked::default();
    let mut chunk = Chunk::default();
    while reader.next_chunk(&mut chunk)? {
        for node in &chunk.nodes {
            if node.module != ModuleId(0) {
                let lookups = asked.lookups.entry(node.module).or_default();
                lookups.insert(node.lookup(), None);
            }
        }
        for record in chunk.records.drain(..) {
            match record.body {
                Body::Module(id, info) => {
                    asked.modules.insert(id, info);
                }
                Body::File(id, info) => {
                    asked.files.insert(id, info);
                }
                _ => {}
            }
        }
    }
    for name in reader.names()? {
        let lookups = asked.lookups.get_mut(&name.module);
        if let Some(known) = lookups.and_then(|lookups| lookups.get_mut(&name.lookup)) {
            *known = Some(name);
        }
    }
    Ok(asked)
}
