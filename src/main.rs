//! The `maptrail` program: arguments in, one call into a crate, result out. No logic.
#![forbid(unsafe_code)]

mod arguments;
mod cli;
mod commands;
mod fail;
mod log;
mod output;

use std::process::ExitCode;

use clap::Parser;

use cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            output::complain(&error);
            ExitCode::from(fail::USAGE)
        }
    }
}
