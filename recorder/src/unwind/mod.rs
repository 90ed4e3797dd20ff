//! Unwinds a stopped thread's user stack to its root, by call frame information (CFI) first.
//!
//! It runs between a thread's stop and its resumption: once the rules of a stack are known, unwinding
//! it again neither allocates nor asks the kernel for anything but stack memory. It does not name
//! functions: a frame is a module and an ELF virtual address in it.
//!
//! ```text
//! Modules     files and their CFI             one for all spaces   modules, elf, cfi
//! AddressMap  where they are mapped           one for each space   address_map
//! StackCopy   the top of the stack            one for each tracer  memory
//! Unwinder    the walk, with its rule cache   one for each tracer  here, rules, reading, step, guess
//! Interner    stacks to ids                   one for each log     intern
//! ```

mod address_map;
mod cfi;
mod elf;
mod expression;
mod go;
mod guess;
mod intern;
mod memory;
mod modules;
mod reading;
mod regs;
mod rules;
mod separate;
mod step;

use maptrail_tracelog::record::StackNode;
use maptrail_tracelog::types::ModuleId;

pub use address_map::{AddressMap, Code};
pub use elf::{ModuleFile, Piece};
pub use intern::Interner;
pub use memory::{FIRST_READ, StackCopy, TargetMemory};
pub use modules::{FileKey, Modules};
pub use regs::{Regs, dwarf};
pub use separate::Whereabouts;

use guess::Calls;
use rules::{Entered, Rule, Rules};
use step::{Cursor, Origin};

/// Frames after which a stack is cut.
pub const MAX_FRAMES: usize = 2048;

/// The page of the calls that the kernel emulates (`VSYSCALL_ADDR` in asm/vsyscall.h): three functions that
/// have no frame and return at once.
const VSYSCALL: std::ops::Range<u64> = 0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000;

/// How often a stack may go on at a lower address: functions that run on a stack of their own, wherever
/// that lies, are few in one stack; wrong ones would go round for ever.
const MAX_STACK_SWITCHES: u32 = 8;

/// One frame of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The module that the frame lies in; `ModuleId(0)` for memory without a file.
    pub module: ModuleId,
    /// The ELF virtual address of the module, or an absolute one without a module. A return address
    /// unless [`StackNode::EXACT`] is set.
    pub offset: u64,
    /// [`StackNode::EXACT`] and [`StackNode::GUESSED`].
    pub flags: u8,
}

/// How a stack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the thread's root: nobody called it.
    Root,
    /// It goes on, and the unwinder cannot.
    Truncated(Cut),
}

impl End {
    /// Whether frames are missing: what [`Interner::intern`] wants to know.
    #[must_use]
    pub fn is_truncated(self) -> bool {
        self != End::Root
    }
}

/// Why a stack was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It has more than [`MAX_FRAMES`].
    Depth,
    /// A return address lies in nothing that is known to be executable.
    NotCode,
    /// There is no CFI for a frame, and neither its code nor its stack leads on.
    NoRule,
    /// The CFI of a frame cannot be understood.
    BadRule,
    /// The CFI refers to a register whose value an inner frame did not save.
    LostRegister,
    /// The stack could not be read where the CFI says.
    Unreadable,
    /// The caller's frame would lie below its callee's.
    NotUpwards,
}

/// Unwinds stacks, and remembers the rules that it needed.
pub struct Unwinder {
    /// The modules that address maps refer to.
    pub modules: Modules,
    rules: Rules,
    calls: Calls,
}

impl Default for Unwinder {
    fn default() -> Unwinder {
        Unwinder::new()
    }
}

impl Unwinder {
    /// An unwinder that knows no module yet.
    #[must_use]
    pub fn new() -> Unwinder {
        Unwinder {
            modules: Modules::new(),
            rules: Rules::new(),
            calls: Calls::default(),
        }
    }

    /// Puts the frames of a stack into `out`, innermost first, whatever was there before. The first
    /// is that of `regs` itself. `stack` was [filled](StackCopy::fill) at this stop.
    pub fn unwind(
        &mut self,
        space: &AddressMap,
        regs: &Regs,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
        out: &mut Vec<Frame>,
    ) -> End {
        out.clear();
        let mut walk = Walk {
            cursor: Cursor::new(regs),
            flags: if regs.interrupted {
                StackNode::EXACT
            } else {
                0
            },
            all_known: regs.are_all_known(),
            switches: 0,
            searches: 0,
            code: None,
        };
        while out.len() < MAX_FRAMES {
            if let Err(end) = walk.frame(self, space, stack, mem, out) {
                return end;
            }
        }
        End::Truncated(Cut::Depth)
    }
}

/// A walk up one stack.
struct Walk {
    cursor: Cursor,
    /// Of the frame that comes next.
    flags: u8,
    /// The innermost frame's registers were known, all of them.
    all_known: bool,
    switches: u32,
    /// How often a return address was searched for on the stack.
    searches: u32,
    /// Where the last frame lay: the next one's is the same more often than not.
    code: Option<Code>,
}

impl Walk {
    /// Adds the frame at the cursor and moves on to its caller.
    #[inline]
    fn frame(
        &mut self,
        unwinder: &mut Unwinder,
        space: &AddressMap,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
        out: &mut Vec<Frame>,
    ) -> Result<(), End> {
        let pc = self.cursor.rip;
        if pc == 0 && !out.is_empty() {
            return Err(End::Root);
        }
        let exact = self.flags & StackNode::EXACT != 0;
        let lookup = pc.wrapping_sub(u64::from(!exact));
        let Some(code) = self.code_at(space, lookup) else {
            // What a thread executes is code, known or not; what lies on its stack need not be.
            if out.is_empty() {
                out.push(Frame {
                    module: ModuleId(0),
                    offset: pc,
                    flags: self.flags,
                });
            }
            return Err(End::Truncated(Cut::NotCode));
        };
        let rule = if code.module.0 != 0 {
            let svma = lookup.wrapping_sub(code.bias);
            let rules = &mut unwinder.rules;
            rules.at(&unwinder.modules, code.module, svma, !exact)
        } else if VSYSCALL.contains(&pc) {
            &Rule::LEAF
        } else {
            &Rule::Unknown
        };
        let mut frame = Frame {
            module: code.module,
            offset: pc.wrapping_sub(code.bias),
            flags: self.flags,
        };
        let sp = self.cursor.rsp();
        let mut next_flags = 0;
        let origin = match rule {
            Rule::Usual(usual) => {
                out.push(frame);
                self.cursor.step_usual(usual, stack, mem)?
            }
            &Rule::General(index) => {
                let general = unwinder.rules.general(index);
                let general = general.ok_or(End::Truncated(Cut::BadRule))?;
                match general.entered {
                    Entered::Call => {}
                    // The address is that of the function's first instruction.
                    Entered::Placed => frame.flags |= StackNode::EXACT,
                    Entered::Signal => {
                        frame.flags |= StackNode::EXACT;
                        next_flags = StackNode::EXACT;
                    }
                }
                out.push(frame);
                let origin = self.cursor.step_general(general, stack, mem)?;
                if general.entered == Entered::Placed
                    && space.lookup(self.cursor.rip.wrapping_sub(1)).is_none()
                {
                    return Err(End::Root);
                }
                origin
            }
            Rule::Root => {
                out.push(frame);
                return Err(End::Root);
            }
            Rule::Bad => {
                out.push(frame);
                return Err(End::Truncated(Cut::BadRule));
            }
            &rule @ (Rule::Unknown | Rule::Read(_)) => {
                out.push(frame);
                next_flags = StackNode::GUESSED;
                self.guess(rule, code, unwinder, space, stack, mem)?
            }
        };
        stack.reach(self.cursor.rsp());
        self.check(sp, origin)?;
        self.flags = next_flags;
        Ok(())
    }

    #[inline]
    fn code_at(&mut self, space: &AddressMap, pc: u64) -> Option<Code> {
        match self.code {
            Some(code) if code.range.start.0 <= pc && pc < code.range.end.0 => Some(code),
            _ => {
                self.code = space.lookup(pc);
                self.code
            }
        }
    }

    /// Refuses steps that could go on for ever.
    #[inline]
    fn check(&mut self, sp: u64, origin: Origin) -> Result<(), End> {
        if self.cursor.rsp() > sp || origin == Origin::Anywhere {
            return Ok(());
        }
        self.switches += 1;
        if origin == Origin::Register && self.switches <= MAX_STACK_SWITCHES {
            return Ok(());
        }
        Err(End::Truncated(Cut::NotUpwards))
    }
}
