//! Programs of our own, built for the tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether there is time for thousands of stops.
pub fn long() -> bool {
    std::env::var_os("MAPTRAIL_LONG").is_some_and(|v| v == "1")
}

/// The source of a program.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(name)
}

/// Compiles a program; `name` must be unique among all tests.
pub fn build(compiler: &str, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(program(source))
        .arg("-pthread")
        .status()
        .unwrap_or_else(|e| panic!("{compiler} is needed for this test: {e}"));
    assert!(status.success(), "{compiler} {flags:?} {name}");
    output
}
