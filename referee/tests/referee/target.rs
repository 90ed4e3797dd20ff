//! A process whose threads are stopped, unwound by us.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::unix::fs::MetadataExt;

use maptrail_recorder::unwind::{
    AddressMap, End, FileKey, Frame, Regs, StackCopy, TargetMemory, Unwinder,
};
use maptrail_tracelog::types::{Addr, ModuleId, Range};
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use object::Object;

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

impl Remote {
    pub fn word(&mut self, addr: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(addr, &mut bytes) == 8).then(|| u64::from_le_bytes(bytes))
    }
}

/// One executable line of `/proc/PID/maps`.
#[derive(PartialEq, Eq)]
pub struct Code {
    pub range: Range,
    offset: u64,
    pub path: String,
    /// Where the file's first byte is mapped, or was last.
    base: u64,
}

/// A process, and how we unwind it.
pub struct Target {
    pub pid: Pid,
    pub memory: Remote,
    unwinder: Unwinder,
    space: AddressMap,
    /// What `space` was made from, ascending.
    code: Vec<Code>,
    stack: StackCopy,
    frames: Vec<Frame>,
}

impl Target {
    pub fn new(pid: Pid) -> Target {
        Target {
            pid,
            memory: Remote(pid),
            unwinder: Unwinder::new(),
            space: AddressMap::new(),
            code: Vec::new(),
            stack: StackCopy::new(),
            frames: Vec::new(),
        }
    }

    /// Looks at what is executable now. Returns whether it has changed.
    pub fn look(&mut self) -> bool {
        let code = code_of(self.pid);
        if code == self.code {
            return false;
        }
        self.space = AddressMap::new();
        for Code {
            range,
            offset,
            path,
            ..
        } in &code
        {
            let modules = &mut self.unwinder.modules;
            let module = if path == "[vdso]" {
                let mut bytes = vec![0; range.len() as usize];
                self.memory.read(range.start.0, &mut bytes);
                Some(modules.add_memory(&bytes))
            } else {
                open(self.pid, path).map(|(key, file)| modules.add_file(key, file))
            };
            match module {
                Some(module) => {
                    let bias = modules.bias(module, range.start.0, *offset);
                    self.space.insert(*range, module, bias);
                }
                None => self.space.insert_anonymous(*range),
            }
        }
        self.code = code;
        true
    }

    /// The addresses of the frames of a thread that has these registers, innermost first. `interrupted` says
    /// that it need not be at a system call.
    pub fn stack(&mut self, regs: &libc::user_regs_struct, interrupted: bool) -> (Vec<u64>, End) {
        let mut regs = Regs::from(regs);
        regs.interrupted = interrupted;
        let wanted = self.stack.wanted();
        self.stack.fill(regs.rsp(), wanted, &mut self.memory);
        let end = self.unwinder.unwind(
            &self.space,
            &regs,
            &mut self.stack,
            &mut self.memory,
            &mut self.frames,
        );
        let pcs = self
            .frames
            .iter()
            .map(|f| self.canonical(self.address(f)))
            .collect();
        (pcs, end)
    }

    /// What [`Target::stack`] found last.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Whether code lies in no file.
    pub fn is_jit(&self, pc: u64) -> bool {
        let is_file = |path: &str| {
            path == "[vdso]" || (path.starts_with('/') && !path.starts_with("/memfd:"))
        };
        self.module(pc).is_some_and(|code| !is_file(&code.path))
    }

    /// Whether the code behind a return address does what only the function does that nobody called: `hlt`
    /// at the start of programs, the system call `exit` at that of threads.
    pub fn is_of_root(&mut self, pc: u64) -> bool {
        const HLT: u8 = 0xf4;
        // mov %rax,%rdi; mov $60,%eax; syscall
        const EXIT: [u8; 10] = [0x48, 0x89, 0xc7, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05];
        let mut code = [0; EXIT.len()];
        self.memory.read(pc, &mut code);
        code == EXIT || code[0] == HLT
    }

    /// Whether the text at `pc` is at another distance from the file's first byte than in the file.
    pub fn is_shifted(&self, pc: u64) -> bool {
        let shifted = |code: &Code| code.base + code.offset != code.range.start.0;
        self.module(pc).is_some_and(shifted)
    }

    /// Whether the file at `pc` is known to have no section of this name.
    pub fn has_no(&self, section: &str, pc: u64) -> bool {
        let has = |code: &Code| {
            let bytes = fs::read(format!("/proc/{}/root{}", self.pid, code.path)).ok()?;
            let file = object::File::parse(&*bytes).ok()?;
            Some(file.section_by_name(section).is_some())
        };
        self.module(pc).and_then(has) == Some(false)
    }

    fn address(&self, frame: &Frame) -> u64 {
        if frame.module == ModuleId(0) {
            return frame.offset;
        }
        // A module that is mapped twice has two biases: the one that leads to code is meant.
        let places = self.space.iter().filter(|c| c.module == frame.module);
        let mut addresses = places.map(|c| (c, frame.offset.wrapping_add(c.bias)));
        let inside = |(code, at): &(maptrail_recorder::unwind::Code, u64)| {
            code.range.start.0 <= *at && *at <= code.range.end.0
        };
        addresses.find(inside).map_or(0, |(_, at)| at)
    }

    /// What lies at an address: a path, or "" where no file does; `None` where nothing is executable.
    pub fn module(&self, pc: u64) -> Option<&Code> {
        let after = self.code.partition_point(|c| c.range.start.0 <= pc);
        let code = self.code.get(after.checked_sub(1)?)?;
        (pc < code.range.end.0).then_some(code)
    }

    /// The first address at which the file that lies at `pc` is mapped at that place: some programs map
    /// parts of their text twice.
    pub fn canonical(&self, pc: u64) -> u64 {
        let Some(code) = self.module(pc).filter(|code| code.path.starts_with('/')) else {
            return pc;
        };
        let at = pc - code.range.start.0 + code.offset;
        let holds =
            |c: &&Code| c.path == code.path && c.offset <= at && at - c.offset < c.range.len();
        let first = self.code.iter().find(holds).unwrap_or(code);
        first.range.start.0 + (at - first.offset)
    }

    /// An address as people look it up: offset in the file.
    pub fn place(&self, pc: u64) -> String {
        match self.module(pc) {
            None => format!("{pc:#x}"),
            Some(code) => {
                let name = code.path.rsplit('/').next().unwrap_or_default();
                let at = pc - code.range.start.0 + code.offset;
                format!("{name}+{at:#x}")
            }
        }
    }
}

fn code_of(pid: Pid) -> Vec<Code> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let hex = |s: &str| u64::from_str_radix(s, 16).unwrap();
    let mut base = 0;
    let mut code = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let range = Range {
            start: Addr(hex(start)),
            end: Addr(hex(end)),
        };
        let offset = hex(words[2]);
        if offset == 0 {
            base = range.start.0;
        }
        if words[1].contains('x') {
            code.push(Code {
                range,
                offset,
                path: words.get(5).copied().unwrap_or_default().to_owned(),
                base,
            });
        }
    }
    code
}

fn open(pid: Pid, path: &str) -> Option<(FileKey, File)> {
    if !path.starts_with('/') {
        return None;
    }
    let file = File::open(format!("/proc/{pid}/root{path}")).ok()?;
    let meta = file.metadata().ok()?;
    let key = FileKey {
        dev: (0, u32::try_from(meta.dev()).unwrap()),
        inode: meta.ino(),
    };
    meta.is_file().then_some((key, file))
}

/// Registers of a stopped thread; `None` once it is dead.
pub fn registers(tid: Pid) -> Option<libc::user_regs_struct> {
    ptrace::getregs(tid).ok()
}
