//! What `maptrail attach` will not do: each refusal names cause and remedy, leaves no log, and leaves the
//! process as it was.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::fcntl::{FcntlArg, fcntl};
use tempfile::TempDir;

use crate::common::{
    Run, command, have_or_skip, is_root, maptrail, skip, until, victim, victim_command,
};

/// Greater than any pid can be.
const NO_PID: &str = "4194305";
/// The user `nobody`, by its number.
const NOBODY: &str = "user=65534";

/// A process to attach to, as it is when nothing happens to it. It is killed at the end.
struct Worker {
    child: Child,
    before: String,
}

impl Worker {
    /// A process that sleeps.
    fn sleeping() -> Worker {
        Worker::of(&mut command("sleep", ["1000"]))
    }

    /// A process that comes to sleep in a system call.
    fn of(command: &mut Command) -> Worker {
        let child = command.spawn().expect("a worker starts");
        let pid = child.id();
        // Nothing changes any more once it looks the same twice, asleep in its own program.
        let mut last = String::new();
        let before = until("the worker sleeps", || {
            let exec = fs::read_link(format!("/proc/{pid}/exe")).ok();
            let started = exec.is_some_and(|exe| !exe.ends_with("launch_as"));
            let now = look(pid);
            let settled = started && now.starts_with("S ") && now == last;
            last = now;
            settled.then(|| last.clone())
        });
        Worker { child, before }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// It sleeps on in the same call, untraced, in the same address space.
    fn assert_untouched(&self) {
        assert_eq!(look(self.child.id()), self.before);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// State, tracer, stack pointer and place in the code, and mappings of a process.
fn look(pid: u32) -> String {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let field = |key| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(key));
        value.unwrap_or_default().trim().to_owned()
    };
    let (state, tracer) = (field("State:"), field("TracerPid:"));
    // A sleep goes on as restart_syscall; its stack pointer and its place in the code stay.
    let call = read("syscall");
    let words: Vec<&str> = call.split_whitespace().collect();
    let place = &words[words.len().saturating_sub(2)..];
    format!("{state}, tracer {tracer}, {place:?}\n{}", read("maps"))
}

/// A folder that anybody may write to, in which a refused attach leaves nothing.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Desk {
        let dir = TempDir::new().expect("a temporary directory");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("a mode");
        Desk { dir }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Runs a command here.
    fn run(&self, command: &mut Command) -> Run {
        Run::of(command.current_dir(self.dir.path()))
    }

    /// Asserts that a run was refused with all of `words`, and has left no file here.
    fn assert_refused(&self, run: &Run, words: &[&str]) {
        assert_says(run, words);
        let mut entries = fs::read_dir(self.dir.path()).expect("the folder");
        let left = entries.next().map(|entry| entry.expect("an entry").path());
        assert_eq!(left, None, "left behind after: {}", run.errors());
    }
}

/// Copies a program that is then run. Another process does it: a descriptor for writing in this one could
/// be inherited by a child of another test just then, and nobody can run a file that is being written.
fn copy(program: impl AsRef<Path>, to: &Path) {
    let run = Run::of(&mut command("cp", [program.as_ref(), to]));
    assert!(run.status.success(), "{}", run.errors());
}

fn assert_says(run: &Run, words: &[&str]) {
    let said = run.errors();
    assert_eq!(run.code(), 2, "{said}");
    assert_eq!(run.text(), "", "{said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

/// `maptrail attach ARGS`, without and with a name for the log, is refused with all of `words`.
fn refused(args: &[&str], words: &[&str]) {
    let desk = Desk::new();
    for output in [&[][..], &["-o", "log"]] {
        let run = desk.run(maptrail().arg("attach").args(args).args(output));
        desk.assert_refused(&run, words);
    }
}

#[test]
fn what_is_no_pid_is_wrong_usage() {
    let usage = |args: &[&str], words: &[&str]| {
        refused(args, &[words, &["--help"]].concat());
    };
    for text in ["", "self", "0", "-5", "4711x", "99999999999", "1.5"] {
        usage(&[text], &["pgrep"]);
        usage(&["-p", text], &["pgrep"]);
        usage(&["1", "--tid", &format!("={text}")], &["pgrep"]);
    }
    usage(&[], &["PID"]);
    usage(&["1", "-p", "1"], &["cannot be used with"]);
    usage(&["1", "2"], &["unexpected"]);
}

#[test]
fn options_that_leave_nothing_to_record_are_wrong_usage() {
    let worker = Worker::sleeping();
    let pid = &worker.pid();
    refused(&[pid, "--for", "0s"], &["--for", "nothing happens", "60s"]);
    refused(
        &[pid, "--max-log", "0"],
        &["--max-log", "64KiB or more", "1GiB"],
    );
    refused(&[pid, "--max-slowdown", "-1"], &["-1"]);
    refused(&[pid, "--thread-name", "[z"], &["--thread-name", "pattern"]);
    refused(&[pid, "--mechanism", "seccomp"], &["seccomp", "syscall"]);
    let checked = [pid, "--fail-on", "leak", "-o", "-"];
    assert_says(
        &Run::of(maptrail().arg("attach").args(checked)),
        &["name a file"],
    );
    worker.assert_untouched();
}

#[test]
fn a_process_that_is_not_there_is_said_to_be_so() {
    refused(&[NO_PID], &[NO_PID, "no such process", "pgrep"]);
    refused(&["-p", NO_PID], &["no such process"]);
}

#[test]
fn a_thread_is_no_process() {
    let me = std::process::id().to_string();
    // Tests run in threads beside the first.
    let tid = nix::unistd::gettid().to_string();
    assert_ne!(tid, me);
    refused(
        &[&tid],
        &["thread of process", &format!("attach {me} --tid {tid}")],
    );
}

#[test]
fn a_zombie_is_named_with_its_parent() {
    let mut child = command("true", [""; 0]).spawn().expect("true starts");
    let pid = child.id();
    until("it has ended", || look(pid).starts_with("Z ").then_some(()));
    let parent = format!("parent {}", std::process::id());
    refused(&[&pid.to_string()], &["zombie", &parent]);
    child.wait().expect("an end");
}

#[test]
fn a_thread_of_the_kernel_is_no_target() {
    let name = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        // Not `skip`: where pids are a container's own, nothing can be installed to have one.
        eprintln!("SKIPPED: this pid namespace shows no kernel threads");
        return;
    }
    refused(&["2"], &["kthreadd", "thread of the kernel"]);
}

#[test]
fn maptrail_does_not_attach_to_itself() {
    let desk = Desk::new();
    let mut shell = command("sh", ["-c", "exec \"$0\" attach $$ -o log"]);
    let run = desk.run(shell.arg(env!("CARGO_BIN_EXE_maptrail")));
    desk.assert_refused(&run, &["itself", "pgrep"]);
}

#[test]
fn the_shell_that_waits_for_maptrail_is_no_target() {
    let desk = Desk::new();
    let mut shell = command("sh", ["-c", "\"$0\" attach $$ -o log; exit $?"]);
    let run = desk.run(shell.arg(env!("CARGO_BIN_EXE_maptrail")));
    desk.assert_refused(
        &run,
        &["sh started this maptrail", "another terminal", "worker"],
    );
}

#[test]
fn a_process_that_is_traced_already_keeps_its_tracer() {
    if !have_or_skip("strace") {
        return;
    }
    let worker = Worker::sleeping();
    let mut strace = command("strace", ["-q", "-o", "/dev/null", "-p", &worker.pid()])
        .spawn()
        .expect("strace starts");
    let traced = format!("tracer {},", strace.id());
    let pid = worker.child.id();
    let shown = until("strace traces it", || {
        let shown = look(pid);
        (shown.starts_with("S ") && shown.contains(&traced)).then_some(shown)
    });
    let tracer = format!("strace (pid {})", strace.id());
    refused(&[&worker.pid()], &[&tracer, "end strace"]);
    assert_eq!(look(pid), shown);
    strace.kill().expect("a signal");
    strace.wait().expect("an end");
}

/// The process of `worker` is refused to the user `nobody`.
fn refused_to_nobody(worker: &Worker, words: &[&str]) {
    // The program may lie where this user may not look.
    let desk = Desk::new();
    let program = desk.dir.path().join("maptrail");
    copy(env!("CARGO_BIN_EXE_maptrail"), &program);
    let mut launch = command(victim("launch_as"), [NOBODY, "--"]);
    launch
        .arg(&program)
        .args(["attach", &worker.pid(), "-o", "log"]);
    let run = desk.run(&mut launch);
    fs::remove_file(&program).expect("the copy");
    desk.assert_refused(&run, words);
    worker.assert_untouched();
}

#[test]
fn another_users_process_is_for_root_to_attach_to() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let words = ["another user", "uid 0", "uid 65534", "sudo"];
    refused_to_nobody(&Worker::sleeping(), &words);
    let mut other = command(victim("launch_as"), ["user=65533", "--", "sleep", "1000"]);
    let words = ["another user, uid 65533", "uid 65534", "sudo"];
    refused_to_nobody(&Worker::of(&mut other), &words);
}

#[test]
fn a_process_of_the_same_user_may_be_protected() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let desk = Desk::new();
    // The kernel lets nobody look into a program whose file may not be read.
    let unreadable = desk.dir.path().join("unreadable");
    copy("/bin/sleep", &unreadable);
    fs::set_permissions(&unreadable, PermissionsExt::from_mode(0o711)).expect("a mode");
    let mut launch = command(victim("launch_as"), [NOBODY, "--"]);
    let worker = Worker::of(launch.arg(&unreadable).arg("1000"));
    refused_to_nobody(&worker, &["not readable", "sudo"]);

    if !have_or_skip("setpriv") {
        return;
    }
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let capable = [
        "--inh-caps=+chown",
        "--ambient-caps=+chown",
        "sleep",
        "1000",
    ];
    let worker = Worker::of(command("setpriv", nobody).args(capable));
    refused_to_nobody(&worker, &["capabilities", "sudo"]);
}

#[test]
fn a_process_in_another_user_namespace_is_said_to_be_there() {
    if !is_root() {
        return skip("only root can become another user");
    }
    if !Run::of(&mut command("unshare", ["--user", "true"]))
        .status
        .success()
    {
        return skip("user namespaces cannot be made here");
    }
    let worker = Worker::of(&mut command("unshare", ["--user", "sleep", "1000"]));
    refused_to_nobody(
        &worker,
        &["another user namespace", "nsenter", "root of the host"],
    );
}

#[test]
fn a_32_bit_program_is_for_record() {
    // It prints at its end: into a pipe that is full, so that it stays.
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let page = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
    let page = usize::try_from(page).expect("a size");
    writer
        .write_all(&vec![b' '; page])
        .expect("room for a page");
    let worker = Worker::of(victim_command("nolibc32").stdout(writer));
    refused(&[&worker.pid()], &["32-bit", "maptrail record"]);
    worker.assert_untouched();
    drop(reader);
}

#[test]
fn a_choice_that_takes_no_thread_is_refused() {
    let (worker, other) = (Worker::sleeping(), Worker::sleeping());
    let (pid, elsewhere) = (&worker.pid(), &other.pid());
    let theirs = format!("process {elsewhere} (sleep)");
    refused(
        &[pid, "--tid", elsewhere],
        &[&theirs, &format!("/proc/{pid}/task")],
    );
    refused(&[pid, "--tid", pid, "--tid", elsewhere], &[&theirs]);
    refused(&[pid, "--tid", NO_PID], &["no thread", NO_PID]);
    refused(
        &[pid, "--thread-name", "decode-*"],
        &["decode-*", r#"there are "sleep""#],
    );
    refused(
        &[pid, "--thread-name", "sl*", "--thread-name", "decode-*"],
        &["like \"decode-*\""],
    );
    worker.assert_untouched();
    other.assert_untouched();
}

/// Attaches to `worker` with the log at `path`, which must fail.
fn refused_output(worker: &Worker, path: &Path, options: &[&str], words: &[&str]) {
    let mut attach = maptrail();
    attach.args(["attach", &worker.pid(), "--for", "200ms", "-o"]);
    assert_says(&Run::of(attach.arg(path).args(options)), words);
    worker.assert_untouched();
}

#[test]
fn an_output_that_cannot_be_made_is_said_before_anything_is_done() {
    let worker = Worker::sleeping();
    let desk = Desk::new();
    refused_output(
        &worker,
        &desk.dir.path().join("no/log"),
        &[],
        &["no/log", "directory"],
    );
    refused_output(&worker, desk.dir.path(), &["--force"], &["directory"]);
    fs::write(desk.log(), "precious").expect("a file");
    refused_output(&worker, &desk.log(), &[], &["exists", "--force"]);
    // Nor is it emptied for a process that cannot be attached to.
    refused_output_of_no_process(&desk.log());
    assert_eq!(
        fs::read_to_string(desk.log()).expect("the file"),
        "precious"
    );
}

fn refused_output_of_no_process(path: &Path) {
    let mut attach = maptrail();
    attach.args(["attach", NO_PID, "--force", "-o"]);
    assert_says(&Run::of(attach.arg(path)), &["no such process"]);
}

#[test]
fn a_full_output_ends_the_recording_and_not_the_process() {
    let worker = Worker::sleeping();
    refused_output(
        &worker,
        Path::new("/dev/full"),
        &["--force"],
        &["No space left"],
    );
}

#[test]
fn without_descriptors_nothing_is_done() {
    let worker = Worker::sleeping();
    let pid = &worker.pid();
    // Three are the standard streams, the dynamic loader needs a fourth. The resource is RLIMIT_NOFILE.
    for limit in 4..16 {
        let desk = Desk::new();
        let mut launch = command(victim("launch_as"), [&*format!("hard=7:{limit}"), "--"]);
        launch.arg(env!("CARGO_BIN_EXE_maptrail"));
        launch.args(["attach", pid, "--for", "50ms", "-o", "log"]);
        let run = desk.run(&mut launch);
        match run.code() {
            0 => assert!(desk.log().exists(), "{limit}: {}", run.errors()),
            _ => desk.assert_refused(&run, &["open files"]),
        }
        assert!(
            limit > 4 || run.errors().contains("ulimit -n"),
            "{}",
            run.errors()
        );
        worker.assert_untouched();
    }
}
