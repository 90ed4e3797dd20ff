//! Job control on a terminal: Ctrl-C, Ctrl-Z, fg, bg, a resize, for a recorded program as for a bare one.
//!
//! Every scene is played twice, bare and recorded, with the same expectations.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use tempfile::TempDir;

use crate::common::{Run, assert_exact, command, finish, until_or, victim};

/// A terminal with a program on it.
struct Terminal {
    master: File,
    name: PathBuf,
    seen: Arc<Mutex<Vec<u8>>>,
    /// Up to here the output has been looked at.
    cursor: usize,
    child: Child,
}

impl Terminal {
    /// Starts `words` in a session of its own, with a new terminal.
    fn with(words: &[&str], dir: &Path) -> Terminal {
        // Close-on-exec from the first moment, so that no other test's child inherits it.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let pty = posix_openpt(flags).expect("a terminal");
        grantpt(&pty).expect("a terminal");
        unlockpt(&pty).expect("a terminal");
        let name = PathBuf::from(ptsname_r(&pty).expect("the terminal's name"));
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&name)
            .expect("the terminal");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = command(victim("launch_as"), ["tty", "--"])
            .args(words)
            .current_dir(dir)
            .env("PS1", "@ ")
            .env("TERM", "dumb")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("launch_as starts");
        let master = File::from(OwnedFd::from(pty));
        let mut output = master.try_clone().expect("a descriptor");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The read fails when the last program has left the terminal.
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                sink.lock()
                    .expect("no panic")
                    .extend_from_slice(&buffer[..n]);
            }
        });
        Terminal {
            master,
            name,
            seen,
            cursor: 0,
            child,
        }
    }

    fn type_in(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("the terminal takes input");
    }

    /// Waits for `text` in what has not been looked at yet.
    fn expect(&mut self, text: &str) {
        let rest = || {
            let seen = self.seen.lock().expect("no panic");
            String::from_utf8_lossy(&seen[self.cursor..]).into_owned()
        };
        let end = until_or(
            || rest().find(text).map(|at| at + text.len()),
            || format!("{text:?} on the terminal, where there is {:?}", rest()),
        );
        self.cursor += end;
    }

    /// How often `text` was on the terminal so far.
    fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic"))
            .matches(text)
            .count()
    }

    fn end(mut self) -> i32 {
        finish(&mut self.child, "the terminal's program")
            .code()
            .unwrap_or(-1)
    }
}

/// Plays a scene bare and recorded. It is given the words that start `program` and a directory.
fn play(program: &str, scene: impl Fn(&[&str], &Path)) {
    let dir = TempDir::new().expect("a temporary directory");
    let program = if program.contains('/') {
        program.into()
    } else {
        victim(program)
    };
    let program = program.to_str().expect("a path that is text");
    scene(&[program], dir.path());
    scene(
        &[
            env!("CARGO_BIN_EXE_maptrail"),
            "record",
            "-o",
            "log",
            "--",
            program,
        ],
        dir.path(),
    );
    assert_exact(&dir.path().join("log"), "");
}

/// An interactive bash on a terminal, with `words` typed in as its first command.
fn shell_running(words: &[&str], dir: &Path) -> Terminal {
    let mut shell = Terminal::with(&["bash", "--norc", "--noprofile", "-i"], dir);
    shell.expect("@ ");
    shell.type_in(&format!("{}\n", words.join(" ")));
    shell
}

fn leave(mut shell: Terminal) {
    shell.type_in("exit\n");
    shell.end();
}

#[test]
fn ctrl_c_reaches_a_program_that_handles_it_once_and_recording_goes_on() {
    play("jobs", |words, dir| {
        let mut terminal = Terminal::with(words, dir);
        terminal.expect("ready foreground=yes");
        for _ in 0..3 {
            terminal.type_in("\x03");
            terminal.expect("got INT");
        }
        terminal.type_in("end\n");
        terminal.expect("read end");
        assert_eq!(terminal.count("got INT"), 3);
        assert_eq!(terminal.end(), 7);
    });
}

#[test]
fn ctrl_c_ends_a_program_that_does_not_handle_it() {
    play("/bin/cat", |words, dir| {
        let mut shell = shell_running(words, dir);
        shell.expect("\n");
        shell.type_in("hello\n");
        shell.expect("hello\r\nhello\r\n");
        shell.type_in("\x03");
        shell.expect("@ ");
        shell.type_in("echo code=$?\n");
        shell.expect("code=130");
        leave(shell);
    });
}

#[test]
fn ctrl_z_stops_and_fg_continues() {
    play("jobs", |words, dir| {
        let mut shell = shell_running(words, dir);
        shell.expect("ready foreground=yes");
        for _ in 0..2 {
            shell.type_in("\x1a");
            shell.expect("Stopped");
            shell.type_in("echo prompt=$?\n");
            shell.expect("prompt=148");
            shell.type_in("fg\n");
            shell.expect("got CONT");
        }
        shell.type_in("words\n");
        shell.expect("read words");
        shell.type_in("end\n");
        shell.expect("@ ");
        shell.type_in("echo code=$?\n");
        shell.expect("code=7");
        leave(shell);
    });
}

#[test]
fn a_job_in_the_background_stops_when_it_reads_the_terminal() {
    play("jobs", |words, dir| {
        let mut shell = shell_running(&[words, &["&"]].concat(), dir);
        shell.expect("ready foreground=no");
        shell.type_in("echo typed\n");
        // Whether or not the job is offered the line first, it may read only in the foreground.
        shell.expect("typed");
        shell.type_in("fg\n");
        shell.expect("jobs");
        shell.type_in("end\n");
        shell.expect("read end");
        shell.type_in("echo code=$?\n");
        shell.expect("code=7");
        leave(shell);
    });
}

#[test]
fn bg_continues_a_stopped_job_and_kill_ends_it() {
    play("jobs", |words, dir| {
        let mut shell = shell_running(words, dir);
        shell.expect("ready foreground=yes");
        shell.type_in("\x1a");
        shell.expect("Stopped");
        shell.type_in("bg; kill %1; wait %1; echo code=$?\n");
        shell.expect("got TERM");
        shell.expect("code=7");
        leave(shell);
    });
}

#[test]
fn a_resize_of_the_terminal_is_heard() {
    play("jobs", |words, dir| {
        let mut terminal = Terminal::with(words, dir);
        terminal.expect("ready foreground=yes");
        let name = terminal.name.clone();
        assert_eq!(
            Run::of(command("stty", ["-F"]).arg(name).args(["rows", "33"])).code(),
            0
        );
        terminal.expect("got WINCH");
        terminal.type_in("end\n");
        assert_eq!(terminal.end(), 7);
    });
}

#[test]
fn ctrl_d_is_the_end_of_input() {
    play("jobs", |words, dir| {
        let mut terminal = Terminal::with(words, dir);
        terminal.expect("ready");
        terminal.type_in("\x04");
        assert_eq!(terminal.end(), 8);
    });
}
