//! Stacks as gdb sees them: slow, and right more often than libunwind.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;

/// Frames after which gdb is told to give up, for those stacks that it thinks are endless.
const MAX_FRAMES: usize = 600;

/// The addresses of the frames of all threads of a process that is stopped and that nobody traces,
/// innermost first. `symbols` is a file with what the program itself was stripped of.
pub fn stacks(pid: Pid, symbols: Option<&Path>) -> HashMap<Pid, Vec<u64>> {
    let symbols = symbols.map_or(String::new(), |path| {
        format!("gdb.execute('symbol-file {}')\n", path.display())
    });
    let script = format!(
        "python\n\
         gdb.execute('set backtrace past-main on')\n\
         gdb.execute('set backtrace past-entry on')\n\
         {symbols}\
         for t in gdb.selected_inferior().threads():\n\
         \x20   try:\n\
         \x20       t.switch()\n\
         \x20       print('thread', t.ptid[1])\n\
         \x20       f = gdb.newest_frame()\n\
         \x20       n = 0\n\
         \x20       while f is not None and n < {MAX_FRAMES}:\n\
         \x20           n += 1\n\
         \x20           if f.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):\n\
         \x20               print('pc', f.pc())\n\
         \x20           f = f.older()\n\
         \x20   except (gdb.error, MemoryError):\n\
         \x20       pass\n\
         end\n"
    );
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gdb-{pid}"));
    std::fs::write(&path, script).unwrap();
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-iex", "set auto-load off"])
        .args(["-iex", "set debuginfod enabled off"])
        .args(["-p", &pid.to_string(), "-x"])
        .arg(&path)
        .output()
        .unwrap_or_else(|e| panic!("gdb is needed for this test: {e}"));
    std::fs::remove_file(&path).unwrap();
    let mut stacks: HashMap<Pid, Vec<u64>> = HashMap::new();
    let mut tid = pid;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(thread) = line.strip_prefix("thread ") {
            tid = Pid::from_raw(thread.parse().unwrap());
        } else if let Some(pc) = line.strip_prefix("pc ") {
            stacks.entry(tid).or_default().push(pc.parse().unwrap());
        }
    }
    stacks
}
