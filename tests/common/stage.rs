//! Programs where everybody may run them, and somebody without privileges who does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{command, maptrail, victim};

/// A user without privileges.
pub const NOBODY: u32 = 65534;

/// A directory that everybody may enter, with copies of the two programs: those of the build may lie where
/// only their owner can read them.
pub struct Stage {
    pub dir: TempDir,
    pub leaking: PathBuf,
    pub maptrail: PathBuf,
}

impl Stage {
    pub fn new() -> Stage {
        let dir = TempDir::new().expect("a temporary directory");
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), everybody).expect("permissions");
        let copy = |from: &Path, name: &str| {
            let to = dir.path().join(name);
            fs::copy(from, &to).expect("a copy");
            to
        };
        Stage {
            leaking: copy(&victim("raw_leak"), "raw_leak"),
            maptrail: copy(Path::new(maptrail().get_program()), "maptrail"),
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory that belongs to [`NOBODY`]; only root can make it.
    pub fn home(&self) -> PathBuf {
        let home = self.path("home");
        if !home.exists() {
            fs::create_dir(&home).expect("a directory");
            chown(&home, Some(NOBODY), Some(NOBODY)).expect("root gives it away");
        }
        home
    }

    /// A command run by [`NOBODY`] at [`Stage::home`], without any capability.
    pub fn as_nobody(&self, program: &Command) -> Command {
        let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
        let dropped = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
        let mut setpriv = command("setpriv", [&user, &group]);
        setpriv.args(dropped).arg(program.get_program());
        setpriv.args(program.get_args());
        let home = self.home();
        setpriv.env("HOME", &home).current_dir(&home);
        setpriv
    }
}
