//! What can happen to a recorder that is attached: it is stopped, killed, or runs out of disk, memory or
//! descriptors. Each time its target goes on unharmed, and the log reads back.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::BROKEN_OFF_BY_A_KILL;
use crate::common::attach::{Started, attach, tracer_of, until_free, until_it_runs_on};
use crate::common::{
    Run, assert_whole_and_no_drift, command, finish, have_or_skip, is_root, json, number, skip,
    until, victim, victim_command,
};
use crate::survival::reads;

/// A window that only an outage ends.
const LONG: &str = "100s";

/// A target, and a window on it.
struct Scene {
    target: Started,
    window: Started,
    tracer: Pid,
    log: PathBuf,
    dir: TempDir,
}

/// What the recorder left.
struct Left {
    status: ExitStatus,
    said: String,
    info: Value,
    log: PathBuf,
    _dir: TempDir,
}

/// A program that notices when it is harmed.
fn unharmed() -> Command {
    victim_command("unharmed 0 none shielded")
}

/// The same, when the tracer is about to be killed.
fn unharmed_by_a_kill() -> Command {
    victim_command(&format!("unharmed 0 {BROKEN_OFF_BY_A_KILL} shielded"))
}

/// Begins `program` by way of `launch_as` in the state that `what` says.
fn launched(what: &str, program: &Command) -> Command {
    let mut launch = command(victim("launch_as"), [what, "--"]);
    launch.arg(program.get_program()).args(program.get_args());
    launch
}

/// Waits until a process is free and runs on, and asserts that it does.
fn assert_goes_on(target: &mut Started) {
    until_free(target.pid());
    let threads = fs::read_dir(format!("/proc/{}/task", target.pid()));
    // Some of them wait for long.
    until_it_runs_on(target.pid(), threads.map_or(0, Iterator::count).div_ceil(4));
    let ended = target.child.try_wait().expect("a child can be waited for");
    assert!(ended.is_none(), "it ended: {ended:?}: {}", target.said());
}

impl Scene {
    /// Starts `target` and attaches to it when it works.
    fn open(target: &mut Command, time: &str) -> Scene {
        let dir = TempDir::new().expect("a temporary directory");
        let log = dir.path().join("log");
        Scene::open_as(dir, log, target, time, Command::from)
    }

    /// The same, with the log in another place, and the attaching program started in another way.
    fn open_as(
        dir: TempDir,
        log: PathBuf,
        target: &mut Command,
        time: &str,
        way: impl FnOnce(Command) -> Command,
    ) -> Scene {
        let mut target = Started::of(target, dir.path().join("target"));
        target.until_it_says("working");
        let mut attach = way(attach(target.pid(), &log, time));
        let mut window = Started::of(&mut attach, dir.path().join("window"));
        window.until_it_says("recording");
        let tracer = tracer_of(target.pid()).expect("the target is traced");
        Scene {
            target,
            window,
            tracer,
            log,
            dir,
        }
    }

    fn signal_tracer(&self, signal: Signal) {
        kill(self.tracer, signal).expect("a signal can be sent");
    }

    /// Asserts that the target was set free and goes on, whatever became of the recorder.
    fn assert_target_goes_on(&mut self) {
        assert_goes_on(&mut self.target);
    }

    /// Asserts that the target goes on, that attaching again works, that the target found nothing wrong,
    /// and that the log reads back.
    fn assert_unharmed(mut self) -> Left {
        self.assert_target_goes_on();
        let (status, said) = self.window.end();
        assert!(!said.contains("panicked"), "{said}");
        let again = self.dir.path().join("again");
        let run = Run::of(&mut attach(self.target.pid(), &again, "300ms"));
        assert_eq!(run.code(), 0, "attaching again: {}", run.errors());
        assert_whole_and_no_drift(&again, &run.errors());
        assert_content(&mut self.target);
        let info = reads(&self.log).expect("a log");
        Left {
            status,
            said,
            info,
            log: self.log,
            _dir: self.dir,
        }
    }
}

/// Lets a target end, and asserts that it found nothing wrong.
fn assert_content(target: &mut Started) {
    let (status, said) = target.end();
    let last = said.lines().last().unwrap_or_default();
    let content = status.success() && last.starts_with("ok");
    assert!(content, "the target was harmed: {said}");
}

impl Left {
    fn assert_killed(&self) {
        assert!(self.said.contains("was killed"), "{}", self.said);
        assert_eq!(self.info["complete"], false, "{:#}", self.info);
    }

    fn assert_in_order(&self) {
        assert_whole_and_no_drift(&self.log, &self.said);
        assert_eq!(self.status.code(), Some(0), "{}", self.said);
        assert!(self.said.contains("memory calls in"), "{}", self.said);
    }

    fn assert_left_after_a_stop(&self) {
        self.assert_in_order();
        let end = self.info["end"].as_str().unwrap_or_default();
        assert!(end.contains("stood still"), "{:#}", self.info);
    }

    fn assert_output_failed(&self, words: &[&str]) {
        assert_eq!(self.status.code(), Some(2), "{}", self.said);
        let said = self.said.to_lowercase();
        assert!(words.iter().any(|w| said.contains(w)), "{said}");
        assert_eq!(self.info["complete"], false, "{:#}", self.info);
    }
}

#[test]
fn a_stopped_tracer_sets_its_target_free() {
    let scene = Scene::open(&mut unharmed(), LONG);
    scene.signal_tracer(Signal::SIGSTOP);
    scene.assert_unharmed().assert_left_after_a_stop();
}

#[test]
fn a_tracer_in_a_debugger_sets_its_target_free() {
    if !have_or_skip("gdb") {
        return;
    }
    let mut scene = Scene::open(&mut unharmed_by_a_kill(), LONG);
    let mut gdb = command("gdb", ["-q", "-nx", "-p", &scene.tracer.to_string()]);
    let gdb = Started::of(&mut gdb, scene.dir.path().join("gdb"));
    scene.assert_target_goes_on();
    // The front process is told of the tracer's end once the debugger lets go of it.
    drop(gdb);
    scene.assert_unharmed().assert_killed();
}

#[test]
fn a_stopped_recorder_sets_its_target_free_and_says_so_later() {
    let mut scene = Scene::open(&mut unharmed(), LONG);
    scene.window.signal(Signal::SIGSTOP);
    scene.signal_tracer(Signal::SIGSTOP);
    scene.assert_target_goes_on();
    scene.window.signal(Signal::SIGCONT);
    scene.assert_unharmed().assert_left_after_a_stop();
}

#[test]
fn a_stopped_front_process_does_not_keep_the_window_open() {
    let mut scene = Scene::open(&mut unharmed(), "1s");
    scene.window.signal(Signal::SIGSTOP);
    scene.assert_target_goes_on();
    scene.window.signal(Signal::SIGCONT);
    scene.assert_unharmed().assert_in_order();
}

#[test]
fn a_killed_front_process_closes_the_window_in_order() {
    let scene = Scene::open(&mut unharmed(), LONG);
    scene.window.signal(Signal::SIGKILL);
    let tracer = PathBuf::from(format!("/proc/{}", scene.tracer));
    until("the tracer has left", || (!tracer.exists()).then_some(()));
    let left = scene.assert_unharmed();
    assert_whole_and_no_drift(&left.log, &left.said);
}

#[test]
fn a_terminal_that_is_closed_closes_the_window_in_order() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let mut target = Started::of(&mut unharmed(), dir.path().join("target"));
    target.until_it_says("working");
    // Nobody else may hold this end of the terminal, or it would not be closed.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let mut terminal = posix_openpt(flags).expect("a terminal");
    grantpt(&terminal).expect("a terminal");
    unlockpt(&terminal).expect("a terminal");
    let name = ptsname_r(&terminal).expect("a terminal's name");
    let other_end = || {
        let mut options = File::options();
        options.read(true).write(true);
        let other_end = options.custom_flags(OFlag::O_NOCTTY.bits()).open(&name);
        other_end.expect("a terminal")
    };
    let mut front = launched("tty", &attach(target.pid(), &log, LONG))
        .stdin(other_end())
        .stdout(other_end())
        .stderr(other_end())
        .spawn()
        .expect("launch_as starts");
    let mut said = String::new();
    while !said.contains("recording") {
        let mut bytes = [0; 1000];
        let n = terminal.read(&mut bytes).unwrap_or(0);
        assert!(n > 0, "it ended and said: {said}");
        said += &String::from_utf8_lossy(&bytes[..n]);
    }
    drop(terminal);
    assert_goes_on(&mut target);
    let status = finish(&mut front, "attach without its terminal");
    assert_eq!(status.code(), Some(0), "{status:?}");
    assert_whole_and_no_drift(&log, &said);
    let info = json(&log, &["info"]);
    let end = info["end"].as_str().unwrap_or_default();
    assert!(end.contains("asked"), "{info:#}");
    assert_content(&mut target);
}

#[test]
fn a_full_disk_ends_the_window_and_not_the_target() {
    if !is_root() {
        return skip("a small file system can be mounted by root only");
    }
    let disk = TempDir::new().expect("a temporary directory");
    let mount =
        Run::of(command("mount", ["-t", "tmpfs", "-o", "size=64k", "none"]).arg(disk.path()));
    if !mount.status.success() {
        return skip(&format!(
            "a small file system cannot be mounted here: {}",
            mount.errors()
        ));
    }
    let log = disk.path().join("log");
    let outcome = std::panic::catch_unwind(|| {
        let dir = TempDir::new().expect("a temporary directory");
        let scene = Scene::open_as(dir, log, &mut unharmed(), LONG, Command::from);
        scene.assert_unharmed().assert_output_failed(&["space"]);
    });
    Run::of(command("umount", ["-l"]).arg(disk.path()));
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_file_size_limit_ends_the_window_and_not_the_target() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let way = |attach: Command| launched("limit=1:65536", &attach);
    let scene = Scene::open_as(dir, log, &mut unharmed(), LONG, way);
    scene
        .assert_unharmed()
        .assert_output_failed(&["too large", "space"]);
}

/// Sets a limit of a running process.
fn limit(pid: Pid, resource: &str, limit: u64) {
    let set = format!("--{resource}={limit}:{limit}");
    let run = Run::of(&mut command("prlimit", ["--pid", &pid.to_string(), &set]));
    assert!(run.status.success(), "prlimit: {}", run.errors());
}

/// A size in the `status` of a process, in bytes.
fn size(pid: Pid, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the tracer");
    let value = status.lines().find_map(|l| l.strip_prefix(field));
    let kib = value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a size") * 1024
}

/// The recorder may use no more memory than it has. It may get along with that, or fail.
fn no_more_memory(resource: &str, field: &str) {
    let scene = Scene::open(&mut unharmed_by_a_kill(), "3s");
    limit(scene.tracer, resource, size(scene.tracer, field));
    let left = scene.assert_unharmed();
    if left.info["complete"] == true {
        left.assert_in_order();
    } else {
        let said = &left.said;
        assert!(
            said.contains("was killed") || said.contains("failed"),
            "{said}"
        );
    }
}

#[test]
fn a_limit_of_the_recorders_address_space_does_not_harm() {
    if have_or_skip("prlimit") {
        no_more_memory("as", "VmSize:");
    }
}

#[test]
fn a_limit_of_the_recorders_data_does_not_harm() {
    if have_or_skip("prlimit") {
        no_more_memory("data", "VmData:");
    }
}

/// A control group with a memory limit, of either version. It is removed when this is dropped.
struct MemoryGroup {
    path: PathBuf,
    usage: &'static str,
    limit: &'static str,
}

impl MemoryGroup {
    fn new(name: &str) -> Option<MemoryGroup> {
        if !is_root() {
            skip("a control group can be made by root only");
            return None;
        }
        let name = format!("maptrail-test-{name}-{}", std::process::id());
        let versions = [
            (
                "/sys/fs/cgroup/memory",
                "memory.usage_in_bytes",
                "memory.limit_in_bytes",
            ),
            ("/sys/fs/cgroup", "memory.current", "memory.max"),
        ];
        for (root, usage, limit) in versions {
            let path = Path::new(root).join(&name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let group = MemoryGroup { path, usage, limit };
            if group.path.join(limit).exists() {
                return Some(group);
            }
        }
        skip("no control group with a memory limit can be made here");
        None
    }

    /// The same program, started in this group.
    fn of(&self, program: &Command) -> Command {
        let enter = "echo $$ > \"$0\" && exec \"$@\"";
        let mut inside = command("sh", ["-c", enter]);
        inside.arg(self.path.join("cgroup.procs"));
        inside.arg(program.get_program()).args(program.get_args());
        inside
    }

    /// Fills the group up with memory that belongs to no process, until `first` is killed for want of it.
    fn fill_until_it_dies(&self, first: &mut Started, dir: &Path) {
        let read = |name| fs::read_to_string(self.path.join(name)).expect("a file of the group");
        let limit = |bytes: u64| fs::write(self.path.join(self.limit), bytes.to_string());
        let used: u64 = read(self.usage).trim().parse().expect("a number");
        limit(used + (4 << 20)).expect("a limit");
        let mut more = command("sh", ["-c", "head -c 65536 /dev/zero >> \"$0\""]);
        more.arg(dir.join("filling"));
        let mut fill = self.of(&more);
        for _ in 0..1000 {
            let ended = first.child.try_wait().expect("a child can be waited for");
            if ended.is_some() {
                // Once is enough: what else is here shall live.
                return limit(1 << 40).expect("no limit");
            }
            Run::of(&mut fill);
        }
        panic!(
            "{used} bytes were used, 64 MiB more were asked for, 4 MiB are allowed, and nobody was killed"
        );
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It is busy until the last process in it is gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Fills up the control group that the recorder is in.
fn no_more_memory_in_the_group(group: &MemoryGroup, target: &mut Command) {
    // Memory that no process owns is a file of a file system in memory.
    let filling = TempDir::new_in("/dev/shm").expect("a directory in memory");
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let mut scene = Scene::open_as(dir, log, target, LONG, |attach| group.of(&attach));
    group.fill_until_it_dies(&mut scene.window, filling.path());
    drop(filling);
    // Its tracer leaves in order, or was killed, too.
    let left = scene.assert_unharmed();
    assert_eq!(left.status.signal(), Some(9), "{}", left.said);
}

#[test]
fn a_recorder_in_a_group_without_memory_does_not_harm() {
    if let Some(group) = MemoryGroup::new("alone") {
        no_more_memory_in_the_group(&group, &mut unharmed_by_a_kill());
    }
}

#[test]
fn a_group_without_memory_loses_the_recorder_and_not_the_target() {
    if !have_or_skip("python3") {
        return;
    }
    let files = TempDir::new().expect("a temporary directory");
    if let Some(group) = MemoryGroup::new("shared") {
        let target = maps_new_files(files.path());
        no_more_memory_in_the_group(&group, &mut group.of(&target));
    }
}

/// Maps ever new programs, and checks that each is what it wrote.
const MAPS_NEW_FILES: &str = "
import mmap, sys, threading
data = open(sys.executable, 'rb').read(1 << 16)
over = threading.Event()
print('working', flush=True)
def work():
    n = 0
    while not over.wait(0.02):
        n += 1
        with open(f'{sys.argv[1]}/{n}', 'x+b') as file:
            file.write(data)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
        assert mapped[:] == data
        print('mapped', flush=True)
    print('ok')
thread = threading.Thread(target=work)
thread.start()
sys.stdin.read()
over.set()
thread.join()
";

fn maps_new_files(dir: &Path) -> Command {
    let mut python = command("python3", ["-c", MAPS_NEW_FILES]);
    python.arg(dir);
    python
}

#[test]
fn a_recorder_without_descriptors_does_not_harm() {
    if !(have_or_skip("prlimit") && have_or_skip("python3")) {
        return;
    }
    let files = TempDir::new().expect("a temporary directory");
    let scene = Scene::open(&mut maps_new_files(files.path()), LONG);
    let open = fs::read_dir(format!("/proc/{}/fd", scene.tracer)).expect("the tracer");
    limit(scene.tracer, "nofile", open.count() as u64 + 3);
    let mapped = || scene.target.said().matches("mapped").count();
    let before = mapped();
    until("more files are mapped", || {
        (mapped() > before + 30).then_some(())
    });
    scene.window.signal(Signal::SIGINT);
    let left = scene.assert_unharmed();
    left.assert_in_order();
    assert!(number(&left.info["events"]) > 30, "{:#}", left.info);
}
