//! Clear words and the right exit code for what cannot be done, and nothing lost by it.

use std::io::PipeWriter;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;

use crate::common::{
    Recording, Run, command, is_root, maptrail, recorded, skip, victim, victim_command,
};

fn mode(path: &Path) -> u32 {
    let meta = std::fs::metadata(path).expect("the file");
    meta.permissions().mode() & 0o777
}

const READERS: [&[&str]; 6] = [
    &["info"],
    &["verify"],
    &["leaks"],
    &["maps"],
    &["timeline"],
    &["events"],
];

/// Runs `maptrail COMMAND LOG MORE` and asserts that it fails by `code` with all of `words` in its message.
fn refused(args: &[&str], log: &Path, code: i32, words: &[&str]) {
    let (name, rest) = args.split_first().expect("a command");
    let run = Run::of(maptrail().arg(name).arg(log).args(rest));
    let said = run.errors();
    assert_eq!(run.code(), code, "{args:?}: {}{said}", run.text());
    assert!(!said.contains("panicked"), "{args:?}: {said}");
    for word in words {
        assert!(
            said.to_lowercase().contains(word),
            "{args:?} does not say {word:?}: {said}"
        );
    }
}

#[test]
fn a_command_that_does_not_exist_gives_127() {
    for name in ["no-such-program-here", "/no/such/program"] {
        let recording = Recording::of(&command(name, [""; 0]));
        assert_eq!(recording.run.code(), 127);
        assert!(
            recording.run.errors().contains(name),
            "{}",
            recording.run.errors()
        );
        assert!(!recording.log.exists(), "a log was left behind");
    }
}

#[test]
fn a_command_that_is_not_executable_gives_126() {
    let dir = TempDir::new().expect("a temporary directory");
    let file = dir.path().join("plain");
    std::fs::write(&file, "just text\n").expect("a file");
    for path in [file.as_path(), dir.path()] {
        let recording = Recording::of(&command(path, [""; 0]));
        assert_eq!(recording.run.code(), 126, "{}", recording.run.errors());
        assert!(!recording.log.exists(), "a log was left behind");
    }
}

/// Programs that are found, and then cannot be run: their interpreter is missing.
fn without_interpreter(dir: &Path) -> std::process::Command {
    let script = dir.join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("a file");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("a mode");
    command(script, [""; 0])
}

#[test]
fn no_log_is_left_of_a_program_that_could_not_start() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let program = without_interpreter(dir.path());
    for options in [&[][..], &["--force"], &["--mechanism", "syscall"]] {
        let run = Run::of(&mut recorded(options, &log, &program));
        assert_eq!(run.code(), 127, "{options:?}: {}", run.errors());
        assert!(run.errors().contains("interpreter"), "{}", run.errors());
        assert!(!log.exists(), "{options:?}: a log was left behind");
    }
}

#[test]
fn no_log_is_left_of_a_program_that_could_not_be_traced() {
    // maptrail inside maptrail: the inner one is refused.
    let dir = TempDir::new().expect("a temporary directory");
    for options in [&[][..], &["--force"]] {
        let inner = dir.path().join("inner");
        let outer = Recording::of(&recorded(options, &inner, &command("true", [""; 0])));
        let said = outer.run.errors();
        assert_eq!(outer.run.code(), 2, "{said}");
        assert!(said.contains("cannot trace"), "{said}");
        assert!(!inner.exists(), "{options:?}: a log was left behind");
    }
    let old = dir.path().join("old");
    std::fs::write(&old, "precious").expect("a file");
    let forced = recorded(&["--force"], &old, &command("true", [""; 0]));
    assert_eq!(Recording::of(&forced).run.code(), 2);
    assert_eq!(std::fs::read_to_string(&old).expect("the file"), "precious");
}

#[test]
fn what_was_there_before_is_not_removed() {
    let dir = TempDir::new().expect("a temporary directory");
    let program = without_interpreter(dir.path());
    let file = dir.path().join("file");
    std::fs::write(&file, "old").expect("a file");
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for log in [&file, &pipe] {
        let run = Run::of(&mut recorded(&["--force"], log, &program));
        assert_eq!(run.code(), 127, "{}", run.errors());
        assert!(log.exists(), "{} was removed", log.display());
    }
    assert!(
        pipe.symlink_metadata()
            .is_ok_and(|m| m.file_type().is_fifo())
    );
}

#[test]
fn a_file_that_exists_is_not_overwritten_unless_forced() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    std::fs::write(&log, "precious").expect("a file");
    std::fs::set_permissions(&log, PermissionsExt::from_mode(0o644)).expect("a mode");
    let marker = dir.path().join("ran");
    let program = command("touch", [&marker]);
    let run = Run::of(&mut recorded(&[], &log, &program));
    assert_eq!(run.code(), 2, "{}", run.errors());
    assert!(run.errors().contains("--force"), "{}", run.errors());
    assert_eq!(std::fs::read_to_string(&log).expect("the file"), "precious");
    assert_eq!(mode(&log), 0o644);
    assert!(
        !marker.exists(),
        "the program was run although nothing could be recorded"
    );
    let forced = Run::of(&mut recorded(&["--force"], &log, &program));
    assert_eq!(forced.code(), 0, "{}", forced.errors());
    crate::common::assert_exact(&log, &forced.errors());
    // It was readable by all, and holds a command line now.
    assert_eq!(mode(&log), 0o600);
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let dir = TempDir::new().expect("a temporary directory");
    let (log, elsewhere) = (dir.path().join("log"), dir.path().join("elsewhere"));
    std::fs::write(&elsewhere, "precious").expect("a file");
    symlink(&elsewhere, &log).expect("a link");
    for options in [&[][..], &["--force"]] {
        let run = Run::of(&mut recorded(options, &log, &command("true", [""; 0])));
        assert_eq!(
            std::fs::read_to_string(&elsewhere).expect("the file"),
            "precious",
            "{options:?}"
        );
        assert!(
            run.code() == 2 || log.symlink_metadata().is_ok_and(|m| m.is_file()),
            "{}",
            run.errors()
        );
    }
}

#[test]
fn an_output_that_cannot_be_made_is_said_before_the_program_runs() {
    let dir = TempDir::new().expect("a temporary directory");
    let marker = dir.path().join("ran");
    let run = Run::of(&mut recorded(
        &[],
        &dir.path().join("no/such/dir/log"),
        &command("touch", [&marker]),
    ));
    assert_eq!(run.code(), 2, "{}", run.errors());
    assert!(run.errors().contains("no/such/dir"), "{}", run.errors());
    assert!(!marker.exists());
}

#[test]
fn an_output_without_permission_is_said_before_the_program_runs() {
    if !is_root() {
        return skip("the program is copied for another user, which needs root");
    }
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    let program = dir.path().join("maptrail");
    std::fs::copy(env!("CARGO_BIN_EXE_maptrail"), &program).expect("a copy");
    let mut launch = command(victim("launch_as"), ["user=65534", "--"]);
    launch
        .arg(&program)
        .arg("record")
        .arg("-o")
        .arg(dir.path().join("log"))
        .args(["--", "true"]);
    let run = Run::of(&mut launch);
    assert_eq!(run.code(), 2, "{}", run.errors());
    assert!(
        run.errors().to_lowercase().contains("permission denied"),
        "{}",
        run.errors()
    );
}

#[test]
fn what_is_no_log_is_refused_by_every_command() {
    let dir = TempDir::new().expect("a temporary directory");
    let file = dir.path().join("file");
    for content in [
        &b""[..],
        b"m",
        b"this is a letter, not a log\n",
        &[0; 5000],
        &[0xff; 5000],
    ] {
        std::fs::write(&file, content).expect("a file");
        for args in READERS {
            refused(args, &file, 2, &["file"]);
        }
    }
    for args in READERS {
        refused(args, &dir.path().join("missing"), 2, &["no such file"]);
        refused(args, dir.path(), 2, &["directory"]);
    }
}

#[test]
fn a_time_outside_the_window_is_refused() {
    let recording = Recording::of(&victim_command("partial_release 5"));
    for time in ["99999s", "-99999s", "1999-01-01T00:00:00Z"] {
        refused(
            &["maps", &format!("--at={time}")],
            &recording.log,
            2,
            &["window"],
        );
    }
    refused(&["maps", "--at=soon"], &recording.log, 2, &["soon"]);
}

#[test]
fn an_address_that_was_never_mapped_is_said_to_be_so() {
    let recording = Recording::of(&victim_command("partial_release 5"));
    let run = Run::of(maptrail().arg("who").arg(&recording.log).arg("0x10"));
    let said = run.text() + &run.errors();
    assert!(said.contains("never"), "{said}");
    refused(
        &["who", "not-an-address"],
        &recording.log,
        2,
        &["not-an-address"],
    );
}

#[test]
fn wrong_usage_gives_2() {
    for args in [
        &["record"][..],
        &["record", "--mechanism", "magic", "--", "true"],
        &["lea"],
        &[],
        &["leaks"],
    ] {
        let run = Run::of(maptrail().args(args));
        assert_eq!(run.code(), 2, "{args:?}: {}", run.errors());
        assert!(run.text().is_empty(), "{args:?} printed {}", run.text());
    }
}

/// The writing end of a pipe that nobody reads.
fn unread() -> PipeWriter {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer
}

#[test]
fn a_closed_pipe_ends_quietly() {
    // Far more events than fit one write.
    let recording = Recording::of(&victim_command("churn 20000"));
    for args in READERS {
        let (name, more) = args.split_first().expect("a command");
        let mut reader = maptrail();
        reader.arg(name).arg(&recording.log).args(more);
        let ended = reader.stdout(unread()).output().expect("maptrail runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_check_fails_although_nobody_reads_why() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let program = victim_command("raw_leak 600 262144 1000");
    let mut checked = recorded(&["--fail-on", "leak"], &log, &program);
    let status = checked.stdout(Stdio::null()).stderr(unread()).status();
    assert_eq!(status.expect("maptrail runs").code(), Some(86));
}
