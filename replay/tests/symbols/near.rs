//! What a symbol reaches is its; what is past it may be anybody's, and is said to be near it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use maptrail_tracelog::record::{Name, NameSource};
use object::{Object, ObjectSection, ObjectSymbol};
use tempfile::TempDir;

use crate::{functions, names_of, new_program, run};

/// Links assembly into a shared library.
fn assemble(source: &str) -> (TempDir, PathBuf) {
    new_program(
        "cc",
        "s",
        source,
        &["-shared", "-nostdlib", "-Wl,--build-id"],
    )
}

/// The address of a symbol.
fn address(file: &Path, symbol: &str) -> u64 {
    let bytes = fs::read(file).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let mut symbols = file.symbols().chain(file.dynamic_symbols());
    let found = symbols.find(|s| s.name() == Ok(symbol));
    found.expect("the symbol").address()
}

/// A name as views tell it: `in function`, `near function`, or nothing.
fn told(name: &Name) -> String {
    match (functions(name).last(), name.source) {
        (None, _) => String::new(),
        (Some(function), NameSource::Dynamic) => format!("near {function}"),
        (Some(function), _) => format!("in {function}"),
    }
}

fn all_told(file: &Path, places: &[u64]) -> Vec<String> {
    names_of(file, places).iter().map(told).collect()
}

#[test]
fn a_static_function_between_two_exported_ones_has_neither_name() {
    let source = "
volatile int sink;
int ucs_before(int n) { sink = n; return n + 1; }
__attribute__((noinline)) static int hidden(int n) { sink = n * 3; return sink + 1; }
int ucs_after(int n) { return hidden(n) + hidden(n + 1); }
";
    let flags = ["-O1", "-fPIC", "-shared", "-fno-toplevel-reorder"];
    let (_dir, library) = new_program("cc", "c", source, &flags);
    let places = ["ucs_before", "hidden", "ucs_after"].map(|name| address(&library, name) + 4);
    assert_eq!(
        all_told(&library, &places),
        ["in ucs_before", "in hidden", "in ucs_after"]
    );
    run(Command::new("strip").arg(&library));
    assert_eq!(
        all_told(&library, &places),
        ["in ucs_before", "near ucs_before", "in ucs_after"]
    );
}

#[test]
fn assembly_that_does_not_tell_its_length_is_near_its_label() {
    let (_dir, library) = assemble(
        "
.text
.globl bare
bare:
    nop; nop; nop; nop
.globl whole
.type whole, @function
whole:
    nop; nop
inner:
    nop; nop
.size whole, . - whole
    nop; nop; nop; nop
.globl data_in_code
.type data_in_code, @object
data_in_code:
    .quad 0
.size data_in_code, 8
",
    );
    let at = |symbol| address(&library, symbol);
    let places = [
        at("bare"),
        at("bare") + 2,
        at("whole"),
        at("inner"),
        at("inner") + 1,
        at("inner") + 2,
        at("data_in_code") + 1,
    ];
    let expected = [
        "near bare",
        "near bare",
        "in whole",
        "in whole",
        "in whole",
        "near inner",
        "near inner",
    ];
    assert_eq!(all_told(&library, &places), expected);
    run(Command::new("strip").arg(&library));
    let expected = expected.map(|told| {
        if told == "near inner" {
            "near whole"
        } else {
            told
        }
    });
    assert_eq!(all_told(&library, &places), expected);
}

#[test]
fn of_several_names_the_exported_one_without_underscores_is_told() {
    let (_dir, library) = assemble(
        "
.text
.globl __grow
.type __grow, @function
__grow:
grow_local:
    nop; nop; nop; nop
.size __grow, . - __grow
.type grow_local, @function
.size grow_local, . - grow_local
.weak grow
.type grow, @function
.set grow, __grow
.globl __GI_grow
.hidden __GI_grow
.type __GI_grow, @function
.set __GI_grow, __grow
",
    );
    assert_eq!(
        all_told(&library, &[address(&library, "grow") + 1]),
        ["in grow"]
    );
}

#[test]
fn the_table_of_calls_to_other_libraries_is_no_function() {
    let source = "#include <stdio.h>\nint main(void) { return puts(\"\"); }";
    let (_dir, program) = new_program("cc", "c", source, &["-O1", "-Wl,-z,lazy"]);
    let bytes = fs::read(&program).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let plt = file
        .section_by_name(".plt")
        .expect("calls by way of a table");
    let places: Vec<u64> = (plt.address()..plt.address() + plt.size()).collect();
    assert!(all_told(&program, &places).iter().all(String::is_empty));
}

#[test]
fn a_part_that_was_split_off_keeps_its_name() {
    let source = "
__attribute__((cold, noinline)) void bad(int n) { asm volatile(\"\" :: \"r\"(n)); }
__attribute__((noinline)) int work(int n) {
    if (__builtin_expect(n > 100, 0)) { bad(n); bad(n + 1); asm volatile(\"nop\"); bad(n + 2); }
    return n + 1;
}
int main(int count, char **argv) { return work(count); }";
    let (_dir, program) = new_program("cc", "c", source, &["-O2"]);
    let place = address(&program, "work.cold") + 1;
    assert_eq!(all_told(&program, &[place]), ["in work.cold"]);
    let (_dir, program) = new_program("cc", "c", source, &["-O2", "-g"]);
    let place = address(&program, "work.cold") + 1;
    assert_eq!(all_told(&program, &[place]), ["in work"]);
}
