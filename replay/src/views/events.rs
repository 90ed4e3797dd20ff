//! `events`: the calls in effect order, as strace prints them or as JSON lines.
//!
//! # JSON
//! One object a line: `t_ns` (when it took effect), `entry_ns`, `exit_ns`, `pid`, `tid`, `space`,
//! `call`, `abi`, `args[]` (addresses as hex strings, all else as numbers), `result` (hex string for
//! addresses, else a number; `-1` if the call failed, `null` if it never came back), `errno` (name, or
//! `null`), `stack` (the log's id of the stack; 0 for none).

use std::io::{self, Write};

use maptrail_tracelog::calls::{Arg, Call};
use maptrail_tracelog::record::{CallEvent, Outcome};
use maptrail_tracelog::types::{Addr, Nanos, Pid, SpaceId, StackId, Tid};
use serde::Serialize;

use super::strace;
use crate::calls;
use crate::observer::Observer;
use crate::world::World;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As `strace -f -o FILE` does.
    Strace,
    /// JSON lines.
    Json,
}

/// Writes each event as the replay comes to it.
pub struct Events<'a> {
    out: &'a mut dyn Write,
    format: Format,
    line: String,
    error: Option<io::Error>,
}

impl<'a> Events<'a> {
    /// A view that writes to `out`.
    pub fn new(out: &'a mut dyn Write, format: Format) -> Events<'a> {
        Events {
            out,
            format,
            line: String::new(),
            error: None,
        }
    }

    /// Whether all was written.
    ///
    /// # Errors
    /// The first error of the output; nothing was written after it.
    pub fn finish(self) -> io::Result<()> {
        self.error.map_or(Ok(()), Err)
    }

    fn write(&mut self, world: &World, event: &CallEvent) -> io::Result<()> {
        let thread = world.thread(event.thread);
        let (pid, tid) = thread.map_or((Pid(0), Tid(0)), |t| (t.pid, t.tid));
        match self.format {
            Format::Strace => {
                self.line.clear();
                strace::write_line(&mut self.line, tid, event).map_err(io::Error::other)?;
                self.line.push('\n');
                self.out.write_all(self.line.as_bytes())
            }
            Format::Json => {
                let at = if calls::is_release(event, world.space(event.space)) {
                    event.entry_ns
                } else {
                    event.exit_ns
                };
                serde_json::to_writer(&mut *self.out, &JsonEvent::new(at, pid, tid, event))?;
                self.out.write_all(b"\n")
            }
        }
    }
}

impl Observer for Events<'_> {
    fn event(&mut self, world: &World, event: &CallEvent) {
        if self.error.is_none() {
            self.error = self.write(world, event).err();
        }
    }

    fn is_done(&self, _at: Nanos) -> bool {
        self.error.is_some()
    }
}

/// A number as JSON has it here.
#[derive(Serialize)]
#[serde(untagged)]
enum Value {
    Address(Addr),
    Signed(i64),
    Unsigned(u64),
}

#[derive(Serialize)]
struct JsonEvent {
    t_ns: Nanos,
    entry_ns: Nanos,
    exit_ns: Nanos,
    pid: Pid,
    tid: Tid,
    space: SpaceId,
    call: &'static str,
    abi: &'static str,
    args: Vec<Value>,
    result: Option<Value>,
    errno: Option<String>,
    stack: StackId,
}

impl JsonEvent {
    fn new(t_ns: Nanos, pid: Pid, tid: Tid, event: &CallEvent) -> JsonEvent {
        JsonEvent {
            t_ns,
            entry_ns: event.entry_ns,
            exit_ns: event.exit_ns,
            pid,
            tid,
            space: event.space,
            call: event.call.name(),
            abi: event.abi.name(),
            args: (event.call.args().iter().zip(&event.args))
                .map(|(&kind, &value)| argument(kind, value))
                .collect(),
            result: result(event),
            errno: event.outcome.errno().map(|n| match strace::errno(n) {
                Some((name, _)) => name.to_owned(),
                None => n.to_string(),
            }),
            stack: event.stack,
        }
    }
}

fn argument(kind: Arg, value: u64) -> Value {
    match kind {
        Arg::Addr => Value::Address(Addr(value)),
        // The kernel takes these as `int`.
        Arg::Fd | Arg::ShmId | Arg::Pkey | Arg::Int => Value::Signed(i64::from(value as i32)),
        _ => Value::Unsigned(value),
    }
}

fn result(event: &CallEvent) -> Option<Value> {
    let Outcome::Returned(returned) = event.outcome else {
        return None;
    };
    Some(match (event.outcome.value(), event.call) {
        (None, _) => Value::Signed(-1),
        (
            Some(value),
            Call::Mmap
            | Call::OldMmap
            | Call::Mmap2
            | Call::Mremap
            | Call::Brk
            | Call::Shmat
            | Call::MapShadowStack,
        ) => Value::Address(Addr(value)),
        (Some(_), _) => Value::Signed(returned),
    })
}
