//! Turns linker names into what the programmer wrote, within bounds.
//!
//! A mangled name of a few bytes can stand for gigabytes (its parts refer to one another), so the
//! output is cut at a length that nobody reads anyway.

use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, Symbol};

/// The longest name that is kept, in bytes.
const MAX_NAME: usize = 2048;

/// The readable form of a C++ or Rust name; other names as they are. Never longer than
/// [`MAX_NAME`] and a mark that something was cut.
#[must_use]
pub fn demangle(name: &str) -> String {
    // What glibc calls its own entry points inside.
    let plain = name.strip_prefix("__GI_");
    let name = plain.filter(|plain| !plain.is_empty()).unwrap_or(name);
    // What LLVM adds to names that it made visible.
    let name = match name.rsplit_once(".llvm.") {
        Some((plain, number))
            if !plain.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            plain
        }
        _ => name,
    };
    let mut out = Bounded::default();
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // The alternate form leaves the hash out. It only fails when the bound is met.
        let _ = write!(out, "{rust:#}");
        return out.finish();
    }
    let options = DemangleOptions::new().no_return_type();
    if name.starts_with("_Z")
        && name.len() <= MAX_NAME * 2
        && let Ok(symbol) = Symbol::new(name)
        && (symbol.structured_demangle(&mut out, &options).is_ok() || out.cut)
    {
        return out.finish();
    }
    let mut out = Bounded::default();
    let _ = out.write_str(name);
    out.finish()
}

/// Whether a name is a linker's for something that has a longer one in C++ or Rust.
pub fn is_mangled(name: &str) -> bool {
    name.starts_with("_Z") || name.starts_with("_R")
}

/// A string that takes so much and then refuses, which stops whoever writes.
#[derive(Default)]
struct Bounded {
    text: String,
    cut: bool,
}

impl Bounded {
    fn finish(mut self) -> String {
        if self.cut {
            self.text.push('…');
        }
        self.text
    }
}

impl Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = MAX_NAME.saturating_sub(self.text.len());
        if s.len() <= room {
            self.text.push_str(s);
            return Ok(());
        }
        let end = s.floor_char_boundary(room);
        self.text.push_str(s.get(..end).unwrap_or_default());
        self.cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_readable() {
        assert_eq!(demangle("malloc"), "malloc");
        assert_eq!(demangle("_ZN3foo3barEmi"), "foo::bar(unsigned long, int)");
        assert_eq!(
            demangle("_ZN4core3fmt5Write9write_str17h0123456789abcdefE"),
            "core::fmt::Write::write_str"
        );
        assert_eq!(demangle("_RNvC6_123foo3bar"), "123foo::bar");
        assert_eq!(demangle("_Zgarbage"), "_Zgarbage");
        assert_eq!(demangle("main.(*Pool).Grow"), "main.(*Pool).Grow");
    }

    #[test]
    fn what_compilers_add_to_names_is_told_or_left_out() {
        for (name, readable) in [
            ("_ZN3foo3barEv.cold", "foo::bar() [clone .cold]"),
            ("_ZN3foo3barEv.isra.0", "foo::bar() [clone .isra.0]"),
            (
                "_ZN3foo3barEv.constprop.0",
                "foo::bar() [clone .constprop.0]",
            ),
            (
                "_ZN3foo3barEv.part.0.cold",
                "foo::bar() [clone .part.0] [clone .cold]",
            ),
            ("grow.constprop.0", "grow.constprop.0"),
            ("__GI___mmap", "__mmap"),
            ("grow.llvm.1234567890", "grow"),
            ("_ZN3foo3barEv.llvm.77", "foo::bar()"),
            (
                "_ZN4core3fmt5Write9write_str17h0123456789abcdefE.llvm.77",
                "core::fmt::Write::write_str",
            ),
            ("grow.llvm.x", "grow.llvm.x"),
            ("__GI_", "__GI_"),
            (".llvm.1", ".llvm.1"),
        ] {
            assert_eq!(demangle(name), readable);
        }
    }

    #[test]
    fn a_name_that_doubles_itself_is_cut() {
        // Each S<n>_ stands for a function type that takes the one before twice.
        let mut name = String::from("_Z1fPFvPvS_E");
        for i in 0..40 {
            let seq = if i == 0 {
                "S0_".to_owned()
            } else {
                format!("S{}_", base36(i * 2))
            };
            name.push_str(&format!("PFv{seq}{seq}E"));
        }
        let readable = demangle(&name);
        assert!(readable.len() <= MAX_NAME + '…'.len_utf8());
        assert!(demangle(&"x".repeat(1 << 20)).ends_with('…'));
    }

    fn base36(n: usize) -> String {
        let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let (high, low) = (n / 36, n % 36);
        let mut out = String::new();
        if high > 0 {
            out.push(char::from(digits[high]));
        }
        out.push(char::from(digits[low]));
        out
    }
}
