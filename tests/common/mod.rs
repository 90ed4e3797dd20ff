//! Helpers of the tests: build a victim, run it bare or recorded, read its truth and maptrail's JSON.
//!
//! Nothing here says what is right; that is for the tests.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub mod attach;
pub mod stage;
pub mod truth;

use truth::Truth;

/// After this a run counts as hung. It is a guard, not a measurement: far more than any run needs.
const HUNG: Duration = Duration::from_secs(120);

/// The directory `testdata` of this repository.
pub fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// The path of a victim, built if need be. All are built at the first call.
pub fn victim(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("victims");
        let build = Command::new(testdata().join("victims/build"))
            .arg(&out)
            .output()
            .expect("testdata/victims/build starts");
        assert!(
            build.status.success(),
            "the victims could not be built:\n{}",
            String::from_utf8_lossy(&build.stderr)
        );
        out
    });
    dir.join(name)
}

/// The program under test.
pub fn maptrail() -> Command {
    Command::new(env!("CARGO_BIN_EXE_maptrail"))
}

/// A program and its arguments.
pub fn command<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// A victim and its arguments, separated by blanks: `"storm 8 2000"`.
pub fn victim_command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    command(victim(words.next().expect("a victim's name")), words)
}

/// What a finished program left.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// The pid of the process that was started.
    pub pid: u32,
}

impl Run {
    /// Runs to the end, with nothing on standard input.
    pub fn of(command: &mut Command) -> Run {
        Run::with_input(command, b"")
    }

    /// Runs to the end, fed with `input`.
    pub fn with_input(command: &mut Command, input: &[u8]) -> Run {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{shown}: {e}"));
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        // The program may end without reading it all.
        let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = drain(child.stdout.take().expect("a pipe"));
        let stderr = drain(child.stderr.take().expect("a pipe"));
        let status = finish(&mut child, &shown);
        let run = Run {
            pid: child.id(),
            status,
            stdout: stdout.join().expect("reading does not panic"),
            stderr: stderr.join().expect("reading does not panic"),
        };
        feeder.join().expect("feeding does not panic");
        run
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The exit code; panics if a signal ended the program.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {:?}\n{}", self.status, self.errors()))
    }

    /// What a shell would report: the exit code, or 128 + signal.
    pub fn shell_code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status
            .code()
            .or_else(|| self.status.signal().map(|s| 128 + s))
            .expect("it has ended")
    }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).expect("a pipe can be read");
        all
    })
}

/// Waits for the end; kills and panics if it does not come.
pub fn finish(child: &mut Child, shown: &str) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if begin.elapsed() > HUNG {
            child.kill().ok();
            child.wait().ok();
            panic!("{shown} has not ended after {HUNG:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `ready` gives something; panics with `what` if that takes far too long.
pub fn until<T>(what: &str, ready: impl FnMut() -> Option<T>) -> T {
    until_or(ready, || what.to_owned())
}

/// The same, with words made when they are needed.
pub fn until_or<T>(mut ready: impl FnMut() -> Option<T>, what: impl Fn() -> String) -> T {
    let begin = Instant::now();
    loop {
        if let Some(t) = ready() {
            return t;
        }
        assert!(begin.elapsed() < HUNG, "waited in vain: {}", what());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A recorded run and its log.
pub struct Recording {
    /// What the recorded program and the recorder left.
    pub run: Run,
    /// Where the log is.
    pub log: PathBuf,
    _dir: TempDir,
}

impl Recording {
    /// Records `program` under the default mechanism.
    pub fn of(program: &Command) -> Recording {
        Recording::with(&[], program, b"")
    }

    /// Records with more options of `record`, and input.
    pub fn with(options: &[&str], program: &Command, input: &[u8]) -> Recording {
        let dir = TempDir::new().expect("a temporary directory");
        let log = dir.path().join("log");
        let mut record = recorded(options, &log, program);
        Recording {
            run: Run::with_input(&mut record, input),
            log,
            _dir: dir,
        }
    }

    /// Runs one of the commands on the log and expects it to succeed.
    pub fn ask(&self, args: &[&str]) -> String {
        ask(&self.log, args)
    }

    /// The same, as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        json(&self.log, args)
    }

    /// The calls, one JSON object each.
    pub fn events(&self) -> Vec<Value> {
        self.ask(&["events", "--format", "json"])
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// All truth lines that the program and its children printed, added up.
    pub fn truth(&self) -> Truth {
        Truth::read(&self.run.text())
    }

    /// Asserts that nothing was lost, that the log is whole, that at least one checkpoint was taken of
    /// every space, and that the model's drift is 0.
    pub fn assert_exact(&self) {
        assert_exact(&self.log, &self.run.errors());
    }
}

/// `maptrail record OPTIONS -o LOG -- PROGRAM`, with the program's environment and directory.
pub fn recorded(options: &[&str], log: &Path, program: &Command) -> Command {
    let mut record = maptrail();
    record
        .arg("record")
        .args(options)
        .arg("-o")
        .arg(log)
        .arg("--");
    record.arg(program.get_program()).args(program.get_args());
    for (key, value) in program.get_envs() {
        match value {
            Some(value) => record.env(key, value),
            None => record.env_remove(key),
        };
    }
    if let Some(dir) = program.get_current_dir() {
        record.current_dir(dir);
    }
    record
}

/// Runs one of the commands on a log (`["leaks", "--json"]`) and expects it to succeed.
pub fn ask(log: &Path, args: &[&str]) -> String {
    let (name, options) = args.split_first().expect("a command");
    let run = Run::of(maptrail().arg(name).arg(log).args(options));
    assert!(
        run.status.success(),
        "maptrail {args:?} gave {:?}\n{}{}",
        run.status,
        run.text(),
        run.errors()
    );
    run.text()
}

/// The same, as JSON.
pub fn json(log: &Path, args: &[&str]) -> Value {
    let text = ask(log, &[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("maptrail {args:?}: {e}\n{text}"))
}

/// See [`Recording::assert_exact`].
pub fn assert_exact(log: &Path, errors: &str) {
    let checkpoints = assert_whole_and_no_drift(log, errors);
    assert!(
        checkpoints >= 1,
        "no checkpoint; the recorder said:\n{errors}"
    );
}

/// The same, but for the checkpoint: a busy program may leave no moment for one. Returns how many were
/// compared.
pub fn assert_whole_and_no_drift(log: &Path, errors: &str) -> u64 {
    let info = json(log, &["info"]);
    assert_eq!(
        info["lost"], 0,
        "events lost; the recorder said:\n{errors}\n{info:#}"
    );
    assert_eq!(
        info["complete"], true,
        "the log is not whole: {info:#}\n{errors}"
    );
    // `verify` exits with 1 when it finds drift; its own words are wanted then, so no `ask`.
    let run = Run::of(maptrail().arg("verify").arg(log).arg("--json"));
    let verify: Value = serde_json::from_slice(&run.stdout)
        .unwrap_or_else(|e| panic!("verify: {e}\n{}{}", run.text(), run.errors()));
    assert_eq!(
        verify["drift_bytes"], 0,
        "drift; the recorder said:\n{errors}\n{verify:#}"
    );
    assert_eq!(run.code(), 0, "verify: {}", run.errors());
    number(&verify["checkpoints"])
}

/// A JSON number that is not negative.
pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("not a count: {value}"))
}

/// Says loudly that a test was skipped; a failure where CI is set.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Whether a program can be found in PATH.
pub fn have(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// True if `program` is there; else says that the test is skipped.
pub fn have_or_skip(program: &str) -> bool {
    let there = have(program);
    if !there {
        skip(&format!("{program} is not installed; ./test says how"));
    }
    there
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
