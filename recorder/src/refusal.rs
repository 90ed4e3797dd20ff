//! Why the kernel refuses to have a thread traced, and what to do about it.
//!
//! ptrace answers EPERM to everything that it forbids. Which rule it was (ptrace(2), "Ptrace access
//! mode checking") has to be found out from what `/proc` says of the two processes: [`Facts`] is what
//! was found, [`Facts::cause`] goes through the rules in the kernel's order.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use maptrail_tracelog::types::{Pid, Tid};

use crate::background::TRACER_NAME;
use crate::proc;

/// Bit of CAP_SYS_PTRACE in a set of capabilities.
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// The cause of a refusal, and what to do about it: `error` is what PTRACE_SEIZE said of thread `tid`.
#[must_use]
pub fn why_refused(tid: Tid, error: &io::Error) -> String {
    Facts::of(tid).cause(error)
}

/// Says that a process has a tracer already.
#[must_use]
pub fn traced_by(tracer: Pid) -> String {
    if proc::comm(Tid(tracer.0)) == TRACER_NAME {
        // To end that process itself would harm what it records.
        return match proc::parent_of(tracer) {
            Some(front) => format!(
                "another maptrail (pid {front}) records it already, and a process has one tracer; end \
                 that recording first"
            ),
            None => "another maptrail records it already, and a process has one tracer".into(),
        };
    }
    traced_by_name(&shown(&proc::comm(Tid(tracer.0))), tracer)
}

fn traced_by_name(name: &str, tracer: Pid) -> String {
    format!(
        "{name} (pid {tracer}) traces it already, and a process has one tracer; end {name} first, or \
         run maptrail outside of it"
    )
}

/// A name that a process gave itself, fit for a message.
#[must_use]
pub fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// What decides whether a thread may be traced, as far as it can be seen from here.
///
/// Yama, security modules and containers' seccomp profiles are not on every machine: what is said of
/// them is tested on facts like these, and untested live.
#[derive(Clone, Debug)]
struct Facts {
    /// Name and pid of the process that traces it.
    tracer: Option<(String, Pid)>,
    ours: Option<Credentials>,
    theirs: Option<Credentials>,
    /// Its files in `/proc` do not belong to its user: it must not be dumped.
    undumpable: bool,
    /// It is in another user namespace than this process.
    other_user_namespace: bool,
    /// `kernel.yama.ptrace_scope`, if the kernel has Yama.
    yama: Option<u8>,
    /// A seccomp filter watches the calls of this process.
    filtered: bool,
}

/// What a thread may do, from its `/proc/TID/status`.
#[derive(Clone, Debug)]
struct Credentials {
    /// The real user's name and id.
    user: String,
    /// Real, effective and saved user ids.
    uids: [u32; 3],
    /// Real, effective and saved group ids.
    gids: [u32; 3],
    /// Permitted capabilities.
    permitted: u64,
    /// Effective capabilities.
    effective: u64,
}

impl Facts {
    fn of(tid: Tid) -> Facts {
        let me = Tid(std::process::id());
        let status = |tid| proc::read_text(&format!("/proc/{tid}/status")).unwrap_or_default();
        let (mine, its) = (status(me), status(tid));
        let theirs = Credentials::parse(&its);
        // Directories in /proc belong to the effective user in any case, files do not.
        let owner = fs::metadata(format!("/proc/{tid}/stat")).map(|meta| meta.uid());
        let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        Facts {
            tracer: proc::tracer_of(tid).map(|pid| (shown(&proc::comm(Tid(pid.0))), pid)),
            undumpable: (theirs.as_ref().zip(owner.ok()))
                .is_some_and(|(theirs, owner)| theirs.uids[1] != owner),
            other_user_namespace: in_other_user_namespace(me, tid),
            yama: yama.ok().and_then(|text| text.trim().parse().ok()),
            filtered: field(&mine, "Seccomp").is_some_and(|mode| mode == "2"),
            ours: Credentials::parse(&mine),
            theirs,
        }
    }

    fn cause(&self, error: &io::Error) -> String {
        match error.raw_os_error() {
            Some(libc::ESRCH) => return "it ended meanwhile".into(),
            Some(libc::ENOSYS) => {
                return "the ptrace system call is not there; a container's seccomp profile may \
                        forbid it: start the container with --cap-add SYS_PTRACE"
                    .into();
            }
            Some(libc::EACCES) => {
                return "a security module of the kernel (SELinux, AppArmor) forbids it; its log \
                        (dmesg, journalctl) names the rule"
                    .into();
            }
            Some(libc::EPERM) => {}
            _ => return format!("the kernel refused ptrace: {error}"),
        }
        if let Some((name, pid)) = &self.tracer {
            return traced_by_name(name, *pid);
        }
        if self.yama == Some(3) {
            return "ptrace is switched off on this machine until it is rebooted \
                    (kernel.yama.ptrace_scope is 3)"
                .into();
        }
        let lacking = match (&self.ours, &self.theirs) {
            (Some(ours), Some(theirs)) => self.lacking(ours, theirs),
            _ => None,
        };
        lacking.unwrap_or_else(|| {
            let seen = "the kernel refused ptrace, though all that can be seen from here allows it";
            match self.filtered {
                true => format!(
                    "{seen}; in a container, allow the ptrace system call (a seccomp profile, or \
                     --cap-add SYS_PTRACE)"
                ),
                false => format!(
                    "{seen}: a tracer in another pid namespace, which is not shown here, may have it \
                     already, or a security module (SELinux, AppArmor) forbids it"
                ),
            }
        })
    }

    /// Which right this process has not got.
    fn lacking(&self, ours: &Credentials, theirs: &Credentials) -> Option<String> {
        if self.other_user_namespace {
            return Some(
                "it is in another user namespace (a container's), in which this user's rights do not \
                 count; run maptrail inside of it (nsenter, docker exec), or as root of the host"
                    .into(),
            );
        }
        if ours.effective & CAP_SYS_PTRACE != 0 {
            return None;
        }
        let remedy = match ours.uids[1] {
            0 => {
                "root has not got CAP_SYS_PTRACE here: start the container with --cap-add \
                 SYS_PTRACE, or run maptrail outside of it"
            }
            _ => "run maptrail as root (sudo), or with CAP_SYS_PTRACE",
        };
        let (our_user, their_user) = (&ours.user, &theirs.user);
        if theirs.uids.iter().any(|uid| *uid != ours.uids[0]) {
            return Some(match theirs.uids[0] == ours.uids[0] {
                true => format!(
                    "it is a set-user-ID program: {our_user} started it, but it has another user's \
                     rights; {remedy}"
                ),
                false => format!(
                    "it belongs to another user, {their_user}, and maptrail runs as {our_user}; \
                     {remedy}"
                ),
            });
        }
        let cause = if theirs.gids.iter().any(|gid| *gid != ours.gids[0]) {
            "it runs with another group's rights (a set-group-ID program, newgrp or sg)"
        } else if self.undumpable {
            "it has forbidden to be looked at (PR_SET_DUMPABLE), or its file is not readable"
        } else if theirs.permitted & !ours.permitted != 0 {
            "it has capabilities that maptrail has not"
        } else {
            return match self.yama {
                Some(2) => Some(format!(
                    "only processes with CAP_SYS_PTRACE may trace on this machine \
                     (kernel.yama.ptrace_scope is 2); {remedy}"
                )),
                Some(1) => Some(format!(
                    "on this machine a process may trace nothing but its own descendants \
                     (kernel.yama.ptrace_scope is 1); {remedy}, start the program with `maptrail \
                     record`, have it call prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY), or lift the \
                     rule (sysctl kernel.yama.ptrace_scope=0)"
                )),
                _ => None,
            };
        };
        Some(format!("{cause}; {remedy}"))
    }
}

impl Credentials {
    fn parse(status: &str) -> Option<Credentials> {
        let ids = |key| {
            let mut ids = field(status, key)?.split_whitespace();
            let mut next = || ids.next()?.parse().ok();
            Some([next()?, next()?, next()?])
        };
        let set = |key| u64::from_str_radix(field(status, key)?, 16).ok();
        let uids = ids("Uid")?;
        Some(Credentials {
            user: user(uids[0]),
            uids,
            gids: ids("Gid")?,
            permitted: set("CapPrm")?,
            effective: set("CapEff")?,
        })
    }
}

/// A line of a `status` file.
fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.map(str::trim)
}

/// A user's name, if this machine's own file has it, and id.
fn user(uid: u32) -> String {
    let passwd = proc::read_text("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    match name {
        Some(name) => format!("{} (uid {uid})", shown(name)),
        None => format!("uid {uid}"),
    }
}

/// Whether two threads are known to be in different user namespaces. The link tells, but may be
/// looked at by few; the map of ids may be read by all, and two namespaces seldom have the same.
fn in_other_user_namespace(a: Tid, b: Tid) -> bool {
    let link = |tid| fs::read_link(format!("/proc/{tid}/ns/user")).ok();
    let map = |tid| fs::read(format!("/proc/{tid}/uid_map")).ok();
    match (link(a).zip(link(b)), map(a).zip(map(b))) {
        (Some((a, b)), _) => a != b,
        (None, Some((a, b))) => a != b,
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    fn credentials(uid: u32, capabilities: u64) -> Credentials {
        Credentials {
            user: format!("uid {uid}"),
            uids: [uid; 3],
            gids: [uid; 3],
            permitted: capabilities,
            effective: capabilities,
        }
    }

    /// An ordinary user, and a process of the same user that nothing protects.
    fn plain() -> Facts {
        Facts {
            tracer: None,
            ours: Some(credentials(1000, 0)),
            theirs: Some(credentials(1000, 0)),
            undumpable: false,
            other_user_namespace: false,
            yama: None,
            filtered: false,
        }
    }

    fn assert_says(facts: &Facts, errno: i32, words: &[&str]) {
        let said = facts.cause(&io::Error::from_raw_os_error(errno));
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said:?}: {facts:?}");
        }
    }

    #[test]
    fn the_errno_decides_where_it_says_more_than_eperm() {
        for (errno, words) in [
            (libc::ESRCH, "ended meanwhile"),
            (libc::ENOSYS, "seccomp profile"),
            (libc::EACCES, "AppArmor"),
            (libc::EIO, "Input/output error"),
        ] {
            assert_says(&plain(), errno, &[words]);
        }
    }

    #[test]
    fn each_rule_of_the_kernel_has_its_words() {
        let root = || Some(credentials(0, ALL));
        let contained_root = || Some(credentials(0, ALL & !CAP_SYS_PTRACE));
        let setuid = || {
            let mut theirs = credentials(1000, ALL);
            theirs.uids = [1000, 0, 0];
            Some(theirs)
        };
        let setgid = || {
            let mut theirs = credentials(1000, 0);
            theirs.gids = [1000, 42, 42];
            Some(theirs)
        };
        let tracer = || Some(("strace".to_owned(), Pid(4711)));
        let all: &[(Facts, &[&str])] = &[
            (
                Facts {
                    tracer: tracer(),
                    ..plain()
                },
                &["strace (pid 4711)", "end strace"],
            ),
            (
                Facts {
                    tracer: tracer(),
                    ours: root(),
                    ..plain()
                },
                &["strace (pid 4711)"],
            ),
            (
                Facts {
                    yama: Some(3),
                    ours: root(),
                    ..plain()
                },
                &["rebooted"],
            ),
            (
                Facts {
                    yama: Some(2),
                    ..plain()
                },
                &["ptrace_scope is 2", "sudo"],
            ),
            (
                Facts {
                    yama: Some(1),
                    ..plain()
                },
                &["descendants", "sudo", "PR_SET_PTRACER", "record"],
            ),
            (
                Facts {
                    yama: Some(0),
                    ..plain()
                },
                &["another pid namespace"],
            ),
            (
                Facts {
                    ours: root(),
                    yama: Some(1),
                    ..plain()
                },
                &["another pid namespace"],
            ),
            (
                Facts {
                    ours: root(),
                    filtered: true,
                    ..plain()
                },
                &["--cap-add SYS_PTRACE"],
            ),
            (
                Facts {
                    filtered: true,
                    ..plain()
                },
                &["--cap-add SYS_PTRACE"],
            ),
            (
                Facts {
                    theirs: root(),
                    ..plain()
                },
                &["another user, uid 0", "as uid 1000", "sudo"],
            ),
            (
                Facts {
                    theirs: root(),
                    yama: Some(1),
                    ..plain()
                },
                &["another user"],
            ),
            (
                Facts {
                    ours: contained_root(),
                    ..plain()
                },
                &["another user", "--cap-add SYS_PTRACE"],
            ),
            (
                Facts {
                    theirs: setuid(),
                    ..plain()
                },
                &["set-user-ID", "sudo"],
            ),
            (
                Facts {
                    theirs: setgid(),
                    ..plain()
                },
                &["another group", "sudo"],
            ),
            (
                Facts {
                    undumpable: true,
                    ..plain()
                },
                &["PR_SET_DUMPABLE", "sudo"],
            ),
            (
                Facts {
                    theirs: Some(credentials(1000, 1 << 10)),
                    ..plain()
                },
                &["capabilities", "sudo"],
            ),
            (
                Facts {
                    ours: contained_root(),
                    theirs: root(),
                    ..plain()
                },
                &["capabilities", "--cap-add SYS_PTRACE"],
            ),
            (
                Facts {
                    other_user_namespace: true,
                    ..plain()
                },
                &["user namespace", "nsenter"],
            ),
            (
                Facts {
                    other_user_namespace: true,
                    ours: root(),
                    ..plain()
                },
                &["user namespace", "root of the host"],
            ),
            (
                Facts {
                    theirs: None,
                    ..plain()
                },
                &["the kernel refused ptrace"],
            ),
        ];
        for (facts, words) in all {
            assert_says(facts, libc::EPERM, words);
        }
    }

    #[test]
    fn facts_of_this_process() {
        let facts = Facts::of(Tid(std::process::id()));
        let (ours, theirs) = (facts.ours.expect("ours"), facts.theirs.expect("theirs"));
        assert_eq!((ours.uids, ours.gids), (theirs.uids, theirs.gids));
        assert_eq!(ours.user, theirs.user);
        assert!(!facts.undumpable);
        assert!(!facts.other_user_namespace);
        assert!(facts.tracer.is_none());
    }

    #[test]
    fn a_user_without_a_name_has_an_id() {
        assert_eq!(user(u32::MAX - 7), format!("uid {}", u32::MAX - 7));
    }
}
