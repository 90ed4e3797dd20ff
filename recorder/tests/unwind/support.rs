//! Builds victims, stops them, and unwinds them as a tracer would.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use maptrail_recorder::unwind::{
    AddressMap, End, FileKey, Frame, Regs, StackCopy, TargetMemory, Unwinder, Whereabouts,
};
use maptrail_tracelog::record::StackNode;
use maptrail_tracelog::types::{Addr, ModuleId, Range, Tid};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use object::{Object, ObjectSymbol};

/// Compiles `source` and returns the program. `name` must be unique among all tests.
pub fn build(compiler: &str, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unwind");
    fs::create_dir_all(&dir).unwrap();
    let extension = if compiler == "g++" { "cc" } else { "c" };
    let input = dir.join(format!("{name}.{extension}"));
    let output = dir.join(name);
    fs::write(&input, source).unwrap();
    let status = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(&input)
        .args(["-lpthread"])
        .status()
        .unwrap_or_else(|e| panic!("{compiler} is needed for this test: {e}"));
    assert!(status.success(), "{compiler} {flags:?} {name}");
    output
}

/// Memory of a process.
pub struct Remote(pub Pid);

impl TargetMemory for Remote {
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> usize {
        let remote = RemoteIoVec {
            base: addr as usize,
            len: buf.len(),
        };
        process_vm_readv(self.0, &mut [IoSliceMut::new(buf)], &[remote]).unwrap_or(0)
    }
}

/// One line of `/proc/PID/maps`.
struct Line {
    range: Range,
    executable: bool,
    offset: u64,
    path: String,
}

fn maps(pid: Pid) -> Vec<Line> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let hex = |s: &str| u64::from_str_radix(s, 16).unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let executable = words.next().unwrap().contains('x');
            Line {
                range: Range {
                    start: Addr(hex(start)),
                    end: Addr(hex(end)),
                },
                executable,
                offset: hex(words.next().unwrap()),
                path: words.nth(2).unwrap_or_default().to_owned(),
            }
        })
        .collect()
}

/// A child process that has stopped itself by SIGSTOP. Killed when dropped.
pub struct Victim {
    child: Child,
    pub pid: Pid,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = waitpid(self.pid, Some(WaitPidFlag::__WALL));
    }
}

/// What unwinding a thread gave.
pub struct Stack {
    pub end: End,
    pub frames: Vec<Frame>,
    /// Absolute addresses of the frames, innermost first.
    pub pcs: Vec<u64>,
    /// Paths of the frames' modules.
    pub paths: Vec<String>,
    /// Names of the frames' functions, without what compilers append; empty where no symbol is.
    pub names: Vec<String>,
}

impl Stack {
    /// The names of the frames in modules whose path ends so.
    pub fn names_in(&self, path_end: &str) -> Vec<&str> {
        self.paths
            .iter()
            .zip(&self.names)
            .filter(|(path, _)| path.ends_with(path_end))
            .map(|(_, name)| name.as_str())
            .collect()
    }
}

impl Victim {
    pub fn start(command: &mut Command) -> Victim {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let victim = Victim { child, pid };
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(status, WaitStatus::Stopped(pid, Signal::SIGSTOP));
        victim
    }

    /// All threads, the main one first.
    pub fn threads(&self) -> Vec<Pid> {
        let mut tids: Vec<Pid> = fs::read_dir(format!("/proc/{}/task", self.pid))
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .map(Pid::from_raw)
            .collect();
        tids.sort();
        tids
    }

    /// The space of the process as a tracer would know it, with its modules' paths.
    pub fn space(&self, unwinder: &mut Unwinder) -> (AddressMap, HashMap<ModuleId, String>) {
        let mut space = AddressMap::new();
        let mut paths = HashMap::new();
        for line in maps(self.pid).into_iter().filter(|line| line.executable) {
            let module = if line.path.starts_with('/') {
                let file = File::open(&line.path).unwrap();
                let meta = file.metadata().unwrap();
                let key = FileKey {
                    dev: (0, u32::try_from(meta.dev()).unwrap()),
                    inode: meta.ino(),
                };
                let module = unwinder.modules.add_file(key, file);
                let seen = Whereabouts {
                    tid: Tid(self.pid.as_raw().cast_unsigned()),
                    path: line.path.clone(),
                };
                unwinder.modules.was_seen_at(module, seen);
                module
            } else if line.path == "[vdso]" {
                let mut bytes = vec![0; line.range.len() as usize];
                let n = Remote(self.pid).read(line.range.start.0, &mut bytes);
                assert_eq!(n, bytes.len());
                unwinder.modules.add_memory(&bytes)
            } else {
                space.insert_anonymous(line.range);
                continue;
            };
            let bias = unwinder
                .modules
                .bias(module, line.range.start.0, line.offset);
            space.insert(line.range, module, bias);
            paths.insert(module, line.path);
        }
        (space, paths)
    }

    /// Unwinds a thread; the process is left stopped.
    pub fn unwind(&self, tid: Pid) -> Stack {
        let regs = self.regs(tid);
        let mut unwinder = Unwinder::new();
        let (space, paths) = self.space(&mut unwinder);
        let mut mem = Remote(self.pid);
        let mut stack = StackCopy::new();
        stack.fill(regs.rsp(), 4096, &mut mem);
        let mut frames = Vec::new();
        let end = unwinder.unwind(&space, &regs, &mut stack, &mut mem, &mut frames);
        // What the caches answer must be what the files said.
        let mut again = Vec::new();
        stack.fill(regs.rsp(), stack.wanted(), &mut mem);
        assert_eq!(
            unwinder.unwind(&space, &regs, &mut stack, &mut mem, &mut again),
            end
        );
        assert_eq!(again, frames);
        Stack::new(end, frames, &space, &paths)
    }

    /// The registers of a thread.
    pub fn regs(&self, tid: Pid) -> Regs {
        ptrace::attach(tid).unwrap();
        waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
        let regs = ptrace::getregs(tid).unwrap();
        ptrace::detach(tid, Signal::SIGSTOP).unwrap();
        Regs::from(&regs)
    }
}

impl Stack {
    fn new(
        end: End,
        frames: Vec<Frame>,
        space: &AddressMap,
        paths: &HashMap<ModuleId, String>,
    ) -> Stack {
        let bias = |module| space.iter().find(|c| c.module == module).unwrap().bias;
        let path = |frame: &Frame| paths.get(&frame.module).cloned().unwrap_or_default();
        let mut symbols = HashMap::new();
        let names = frames.iter().map(|frame| {
            let path = path(frame);
            let table = symbols
                .entry(path.clone())
                .or_insert_with(|| Symbols::read(&path));
            let exact = frame.flags & StackNode::EXACT != 0;
            table.name(frame.offset - u64::from(!exact))
        });
        Stack {
            end,
            names: names.collect(),
            pcs: frames
                .iter()
                .map(|f| match f.module {
                    ModuleId(0) => f.offset,
                    module => f.offset.wrapping_add(bias(module)),
                })
                .collect(),
            paths: frames.iter().map(path).collect(),
            frames,
        }
    }
}

impl std::fmt::Display for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (((frame, pc), path), name) in self
            .frames
            .iter()
            .zip(&self.pcs)
            .zip(&self.paths)
            .zip(&self.names)
        {
            writeln!(
                f,
                "{pc:#x} {name} {path}+{:#x} {}",
                frame.offset, frame.flags
            )?;
        }
        write!(f, "{:?}", self.end)
    }
}

/// Function symbols of a file: start, size, name.
struct Symbols(Vec<(u64, u64, String)>);

impl Symbols {
    fn read(path: &str) -> Symbols {
        let Ok(bytes) = fs::read(path) else {
            return Symbols(Vec::new());
        };
        let file = object::File::parse(&*bytes).unwrap();
        let symbols = file.symbols().chain(file.dynamic_symbols());
        Symbols(
            symbols
                .filter(|s| s.kind() == object::SymbolKind::Text && s.is_definition())
                .map(|s| (s.address(), s.size().max(1), s.name().unwrap().to_owned()))
                .collect(),
        )
    }

    fn name(&self, address: u64) -> String {
        let found = self
            .0
            .iter()
            .find(|(start, size, _)| (*start..start + size).contains(&address));
        let name = found.map_or("", |(_, _, name)| name);
        name.split('.').next().unwrap_or_default().to_owned()
    }
}
