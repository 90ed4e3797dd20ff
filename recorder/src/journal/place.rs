//! Where a log goes: a file of its own, or one that is replaced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use maptrail_tracelog::types::Tid;

use crate::error::Error;
use crate::proc;

/// Creates the file of a log: readable by its owner only, never through a symbolic link, and never
/// over an existing file unless `force`. What an existing file holds is still there.
///
/// # Errors
/// [`Error::Output`].
pub fn create(path: &Path, force: bool) -> Result<(File, Fresh), Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY);
    let opened = match options.clone().create_new(true).open(path) {
        Ok(file) => Fresh::new(path, &file).map(|fresh| (file, fresh)),
        Err(e) if force && e.kind() == io::ErrorKind::AlreadyExists => {
            let opened = options.create(true).open(path);
            opened.inspect(make_private).map(|file| (file, Fresh(None)))
        }
        Err(e) => Err(e),
    };
    let told = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists if path.is_dir() => io::ErrorKind::IsADirectory.into(),
        _ => error,
    };
    opened.map_err(|error| Error::Output {
        path: path.to_owned(),
        source: told(error),
    })
}

/// Empties a file; a device or a pipe holds nothing.
pub fn empty(file: &File) -> io::Result<()> {
    match file.metadata()?.is_file() {
        true => file.set_len(0),
        false => Ok(()),
    }
}

/// Gives an existing file the mode that a new log has. A device or a pipe is shared on purpose, and
/// another user's file is that user's to protect.
fn make_private(file: &File) {
    let Ok(meta) = file.metadata() else { return };
    if meta.is_file() && proc::effective_uid(Tid(std::process::id())) == Some(meta.uid()) {
        // Where a file system has no modes, a new log would be no more private.
        let _ = file.set_permissions(PermissionsExt::from_mode(0o600));
    }
}

/// A log's file that was not there before this run: its place, device and inode. Empty for one that
/// was.
#[derive(Debug)]
pub struct Fresh(Option<(PathBuf, u64, u64)>);

impl Fresh {
    fn new(path: &Path, file: &File) -> io::Result<Fresh> {
        let meta = file.metadata()?;
        Ok(Fresh(Some((path.to_owned(), meta.dev(), meta.ino()))))
    }

    /// Takes the file away again after a recording that failed with `error`, if the program has not
    /// run. What was there before stays, and so does what somebody else put there meanwhile.
    pub fn remove_unused(self, error: &Error) {
        let Some((path, dev, inode)) = self.0 else {
            return;
        };
        let Ok(meta) = path.symlink_metadata() else {
            return;
        };
        let not_run = matches!(
            error,
            Error::NotFound(_)
                | Error::NoInterpreter(_)
                | Error::NotExecutable { .. }
                | Error::Refused { .. }
                | Error::Target { .. }
        );
        // The header is written before the program starts, so an empty log says the same.
        if (not_run || meta.len() == 0) && (meta.dev(), meta.ino()) == (dev, inode) {
            let _ = std::fs::remove_file(path);
        }
    }
}
