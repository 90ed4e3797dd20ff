//! Who is right about a stack, and how often.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use maptrail_recorder::unwind::End;

use super::processor::Answer;
use super::target::Target;

/// A stack as it was seen at one stop.
pub struct Seen {
    pub ours: Vec<u64>,
    pub end: End,
    /// For each of `ours`, whether it was found without unwind information.
    pub guessed: Vec<bool>,
    pub libunwind: Vec<u64>,
    /// Whether libunwind took its last frame for the root.
    pub ended: bool,
    /// How many of `ours` to compare: those up to the first of a JIT.
    pub compared: usize,
}

/// Where libunwind and we part: the frame that we leave in different ways, and the reason that we see for it.
/// What is true of leaving a place holds whenever it is left.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub at: String,
    module: String,
    reason: &'static str,
}

/// What is known of a place.
#[derive(Default)]
struct Dispute {
    /// gdb, or the processor, found the caller that we find.
    right: bool,
    /// The processor, or gdb, found another caller.
    refuted: bool,
    /// gdb was asked.
    asked: bool,
    stacks: u64,
    /// Frames of ours beyond the last one that libunwind agrees with.
    frames: u64,
    sample: String,
}

/// The counts of one program.
#[derive(Default)]
pub struct Tally {
    stacks: u64,
    rooted: u64,
    jit_stacks: u64,
    jit_rooted: u64,
    frames: u64,
    /// Frames that libunwind agrees with.
    agreed: u64,
    disputes: BTreeMap<Place, Dispute>,
    /// Stacks that were cut, by the place of their last frame.
    cut: BTreeMap<String, (u64, String)>,
    /// Stacks that are not counted: libgcc was delivering an exception. It overwrites what the frames of its
    /// own functions have saved with what the catching frame needs, and nobody can tell.
    pub thrown: u64,
    /// Returns of the processor, and how many of them went where we said.
    returns: u64,
    foretold: u64,
    /// A stack of which they did not.
    surprise: String,
}

/// So many places at which another judge agrees with us make a reason believed for a whole module, if there
/// is none at which it does not.
const BELIEVED: usize = 2;

/// Fewer stacks than this prove nothing.
const ENOUGH: u64 = 20;

/// This reason is no module's: where it shows says nothing about where it comes from.
const LOST: &str =
    "libunwind has lost the stack pointer further in, at code without unwind information";

fn common(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Seen {
    fn is_jit(&self) -> bool {
        self.compared < self.ours.len()
    }

    fn mine(&self) -> &[u64] {
        &self.ours[..self.compared]
    }

    /// How many frames are the same by libunwind.
    pub fn same(&self) -> usize {
        common(self.mine(), &self.libunwind)
    }

    /// Whether there is anything to ask: libunwind has another stack, or we have not reached the root.
    pub fn agrees(&self) -> bool {
        if self.is_jit() {
            return self.same() == self.compared;
        }
        self.ours == self.libunwind && self.end == End::Root
    }

    fn place(&self, target: &Target) -> Place {
        let last = self.ours[self.same().max(1) - 1];
        let reason = self.reason(target);
        let module = target.module(last).filter(|_| reason != LOST);
        Place {
            at: target.place(last),
            module: module.map_or(String::new(), |code| code.path.clone()),
            reason,
        }
    }

    /// Why libunwind parts from us.
    fn reason(&self, target: &Target) -> &'static str {
        let same = self.same().max(1);
        let last = self.ours[same - 1];
        let short = self.libunwind.len() <= same;
        let without = self.guessed.get(same).copied().unwrap_or_default();
        if self.end != End::Root && self.mine().len() <= same {
            "we stop, and it goes on"
        } else if self.mine().len() <= same {
            "libunwind goes on beyond the root"
        } else if self.guessed[..same].contains(&true) {
            LOST
        } else if target.has_no(".eh_frame", last) {
            "libunwind reads neither .debug_frame nor Go's tables, and guesses past callers"
        } else if !without && target.has_no(".eh_frame_hdr", last) {
            "libunwind does not find .eh_frame without .eh_frame_hdr, which musl's programs lack"
        } else if target.is_shifted(last) {
            "libunwind looks in the wrong place where lld puts text at another address than its offset"
        } else if without && short {
            "libunwind stops at code without unwind information"
        } else if without {
            "libunwind guesses wrongly at code without unwind information"
        } else if short {
            "libunwind stops although there is unwind information"
        } else {
            "libunwind finds another caller"
        }
    }
}

impl Tally {
    /// Counts a stack.
    pub fn count(&mut self, target: &Target, seen: &Seen) {
        self.stacks += 1;
        self.frames += seen.compared as u64;
        let same = seen.same() as u64;
        self.agreed += same;
        let rooted = seen.end == End::Root;
        if seen.is_jit() {
            self.jit_stacks += 1;
            self.jit_rooted += u64::from(rooted);
        } else {
            self.rooted += u64::from(rooted);
            // The frame that is missing.
            self.frames += u64::from(!rooted);
        }
        if !rooted {
            let last = *seen.ours.last().unwrap();
            let cut = self.cut.entry(target.place(last)).or_default();
            cut.0 += 1;
            if cut.0 == 1 {
                cut.1 = show(target, seen, "");
            }
        }
        if !seen.agrees() {
            let dispute = self.disputes.entry(seen.place(target)).or_default();
            dispute.stacks += 1;
            dispute.frames += seen.compared as u64 - same;
            if dispute.stacks == 1 {
                dispute.sample = show(target, seen, "nobody was asked");
            }
        }
    }

    /// Whether it is worth asking about this stack.
    pub fn is_open(&self, target: &Target, seen: &Seen) -> bool {
        let known = self.disputes.get(&seen.place(target));
        !seen.agrees() && !known.is_some_and(|dispute| dispute.right)
    }

    /// Whether gdb was asked about it.
    pub fn was_asked(&self, target: &Target, seen: &Seen) -> bool {
        let known = self.disputes.get(&seen.place(target));
        known.is_some_and(|dispute| dispute.asked)
    }

    /// What gdb says of a stack.
    pub fn hear_gdb(&mut self, target: &Target, seen: &Seen, gdb: &[u64]) {
        // A signal that was on its way has been delivered since.
        if gdb.first() != seen.ours.first() {
            return;
        }
        let same = seen.same();
        let mine = seen.mine();
        let right = mine == gdb
            || (seen.is_jit() && gdb.starts_with(mine))
            || (same > 0 && mine.len() > same && mine.get(..=same) == gdb.get(..=same));
        let said = format!("gdb       {}", names(target, gdb));
        let dispute = self.disputes.entry(seen.place(target)).or_default();
        dispute.asked = true;
        dispute.sample = show(target, seen, &said);
        // It is no wonder that gdb is lost, too: only another stack, all of code, is another opinion.
        let other = &gdb[common(mine, gdb)..];
        let is_code = |&pc: &u64| pc == 0 || target.module(pc).is_some();
        if right || (other.first() > Some(&0) && other.iter().all(is_code)) {
            self.hear(target, seen, right, said);
        }
    }

    /// What the outermost frames say of themselves, if they are all that is disputed.
    pub fn hear_root(&mut self, target: &mut Target, seen: &Seen) {
        const OUTERMOST: usize = 3;
        let few = seen.mine().len() <= seen.same() + OUTERMOST;
        let last = *seen.ours.last().unwrap();
        if few && !seen.is_jit() && seen.end == End::Root && target.is_of_root(last) {
            self.hear(target, seen, true, String::new());
        }
    }

    /// What the processor says of a stack.
    pub fn hear_processor(&mut self, target: &Target, seen: &Seen, answer: &Answer) {
        let told = common(&answer.returns, &seen.ours[1..]);
        self.returns += answer.returns.len() as u64;
        self.foretold += told as u64;
        // The caller that libunwind does not find must be among those that were returned to.
        let all = told == answer.returns.len();
        let said = format!("processor {}", names(target, &answer.returns));
        if !all {
            self.surprise = show(target, seen, &said);
        }
        // Too few returns to tell.
        let enough = !all || told >= seen.same();
        if !seen.agrees() && enough {
            self.hear(target, seen, all, said);
        }
    }

    fn hear(&mut self, target: &Target, seen: &Seen, right: bool, said: String) {
        let dispute = self.disputes.entry(seen.place(target)).or_default();
        dispute.right |= right;
        dispute.refuted |= !right;
        if !right {
            dispute.sample = show(target, seen, &said);
        }
    }

    /// Prints the row of a program, what is behind it, and returns whether it is good enough.
    pub fn judge(&self, name: &str) -> bool {
        let mut believed: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut refuted = BTreeSet::new();
        for (place, dispute) in &self.disputes {
            let class = (place.module.as_str(), place.reason);
            if dispute.right {
                *believed.entry(class).or_default() += 1;
            } else if dispute.refuted {
                refuted.insert(class);
            }
        }
        let is_right = |place: &Place, dispute: &Dispute| {
            let class = (place.module.as_str(), place.reason);
            let believed = believed.get(&class).is_some_and(|&n| n >= BELIEVED);
            dispute.right || (believed && !refuted.contains(&class))
        };
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for (place, dispute) in &self.disputes {
            if is_right(place, dispute) {
                *reasons.entry(place.reason).or_default() += dispute.frames;
            }
        }
        let agreed = self.agreed + reasons.values().sum::<u64>();
        let plain = self.stacks - self.jit_stacks;
        println!(
            "| {name} | {} | {} | {} | {} | {} | {} |",
            self.stacks,
            self.frames,
            percent(self.agreed, self.frames),
            percent(agreed, self.frames),
            percent(self.rooted, plain),
            if self.jit_stacks > 0 {
                format!("{} of {}", self.jit_rooted, self.jit_stacks)
            } else {
                String::new()
            },
        );
        for (reason, frames) in &reasons {
            println!("    {frames} frames: {reason}");
        }
        if self.thrown > 0 {
            println!(
                "    {} stacks not counted: an exception was being delivered",
                self.thrown
            );
        }
        let (foretold, returns) = (self.foretold, self.returns);
        println!(
            "    {foretold} of {returns} returns as foretold {}",
            self.surprise
        );
        for (place, dispute) in &self.disputes {
            if !is_right(place, dispute) {
                let Dispute { stacks, sample, .. } = dispute;
                println!(
                    "    wrong {stacks} times at {}: {}, {sample}",
                    place.at, place.reason
                );
            }
        }
        for (place, (times, sample)) in &self.cut {
            println!("    cut {times} times at {place}: {sample}");
        }
        self.stacks >= ENOUGH
            && agreed * 1000 >= self.frames * 999
            && self.rooted * 100 >= plain * 99
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.2} %", part as f64 * 100.0 / whole.max(1) as f64)
}

fn names(target: &Target, pcs: &[u64]) -> String {
    let mut out = String::new();
    for &pc in pcs.iter().take(40) {
        let _ = write!(out, "{} ", target.place(pc));
    }
    out
}

fn show(target: &Target, seen: &Seen, said: &str) -> String {
    format!(
        "{:?}\n      ours      {}\n      libunwind {}({})\n      {said}",
        seen.end,
        names(target, &seen.ours),
        names(target, &seen.libunwind),
        if seen.ended { "root" } else { "lost" },
    )
}
