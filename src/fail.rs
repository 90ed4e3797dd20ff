//! Exit codes, and the options that let a CI job fail on a leak.

use std::process::ExitCode;

use clap::ValueEnum;
use maptrail_replay::leaks::Leaks;
use maptrail_replay::views::text::parse_size;

/// A check that was asked for failed.
pub const CHECK: u8 = 1;
/// Wrong usage, no permission, or a file that is no log.
pub const USAGE: u8 = 2;

/// What `--fail-on` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Any stack that is judged a leak.
    Leak,
}

/// When to fail although all went well.
#[derive(Clone, Debug, clap::Args)]
pub struct FailArgs {
    /// Fail if any stack is judged a leak
    #[arg(long, value_name = "WHAT")]
    fail_on: Option<FailOn>,

    /// Fail if the stacks judged leaks hold more than this together, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    fail_over: Option<u64>,

    /// The exit code of such a failure
    #[arg(long, value_name = "CODE", default_value_t = 86, value_parser = clap::value_parser!(u8).range(1..))]
    fail_exit_code: u8,
}

impl FailArgs {
    /// Whether a check was asked for.
    #[must_use]
    pub fn any(&self) -> bool {
        self.fail_on.is_some() || self.fail_over.is_some()
    }

    /// The exit code if a check fails.
    #[must_use]
    pub fn check(&self, leaks: &Leaks) -> Option<ExitCode> {
        let failed = (self.fail_on == Some(FailOn::Leak) && leaks.leak_rows > 0)
            || self
                .fail_over
                .is_some_and(|limit| leaks.leaked_bytes > limit);
        failed.then(|| ExitCode::from(self.fail_exit_code))
    }
}
