//! The command line: what all commands share, and which commands there are.
//!
//! Each command's own arguments stand beside its code in `commands/`.

use std::process::ExitCode;

use clap::{ColorChoice, Parser, Subcommand};

use crate::commands::{
    attach, events, info, leaks, maps, record, symbolize, timeline, verify, who,
};
use crate::output::Output;

/// Finds memory that a program maps and never gives back.
///
/// Heap profilers watch malloc. maptrail watches the kernel: every mmap, munmap, mremap, brk and the
/// rest of them, with the call stack of each, from whatever library, runtime or raw system call it
/// comes. It then names the stacks whose mappings are never released.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// Colour the output: on a terminal (unless NO_COLOR is set), always or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  maptrail record -o run.maptrail -- ./server --port 80   run a program and record it
  maptrail attach 4711 --for 60s -o run.maptrail          record a running process for a minute
  maptrail leaks run.maptrail                             what it holds, and who mapped it
  maptrail who run.maptrail 0x7f2a10000000                the life of one address
  maptrail maps run.maptrail --at -5s                     the address space 5 s before the end

Exit codes:
  0          fine
  1          `verify` found drift
  2          wrong usage, no permission, or a file that is no log
  86         `record`, `attach`, `leaks`: a check of --fail-on or --fail-over failed
  126, 127   `record`: the program cannot be executed, or does not exist
  128+N      `record`: signal N ended the program
  others     `record` hands on the program's own exit code";

#[derive(Debug, Subcommand)]
enum Command {
    Record(record::Args),
    Attach(attach::Args),
    Leaks(leaks::Args),
    Maps(maps::Args),
    Timeline(timeline::Args),
    Who(who::Args),
    Events(events::Args),
    Verify(verify::Args),
    Info(info::Args),
    Symbolize(symbolize::Args),
}

impl Cli {
    /// Runs the command; the code is the program's exit code.
    ///
    /// # Errors
    /// What the user has to know about why nothing, or not everything, was done.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut output = Output::new(self.color);
        match self.command {
            Command::Record(args) => args.run(),
            Command::Attach(args) => args.run(),
            Command::Leaks(args) => args.run(&mut output),
            Command::Maps(args) => args.run(&mut output),
            Command::Timeline(args) => args.run(&mut output),
            Command::Who(args) => args.run(&mut output),
            Command::Events(args) => args.run(&mut output),
            Command::Verify(args) => args.run(&mut output),
            Command::Info(args) => args.run(&mut output),
            Command::Symbolize(args) => args.run(&mut output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
