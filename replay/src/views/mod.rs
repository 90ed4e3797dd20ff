//! What people and scripts read: text and JSON of each command.
//!
//! Views only print. What they print was decided by the model and the verdicts; nothing here judges.
//! Strings of the recorded program are escaped wherever they are printed: in a text view as a person
//! reads them, in JSON by JSON's own means.

pub mod events;
pub mod info;
pub mod leaks;
pub mod maps;
mod stack;
pub mod strace;
pub mod text;
pub mod timeline;
mod untraced;
pub mod verify;
pub mod when;
pub mod who;

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

use text::escaped;

/// Writes a value as JSON for people and programs: indented, one document.
///
/// # Errors
/// Those of the output.
pub fn write_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let format = Harmless(PrettyFormatter::new());
    value.serialize(&mut Serializer::with_formatter(&mut *out, format))?;
    out.write_all(b"\n")
}

/// Indented JSON that does no harm to a terminal: what [`escaped`] would not print is written as
/// `\u001b`. To who parses it, it is the same.
struct Harmless(PrettyFormatter<'static>);

/// Leaves these parts of JSON to the formatter inside.
macro_rules! as_inside {
    ($($part:ident($($argument:ident: $type:ty)?);)*) => {
        $(fn $part<W: ?Sized + Write>(&mut self, out: &mut W $(, $argument: $type)?) -> io::Result<()> {
            self.0.$part(out $(, $argument)?)
        })*
    };
}

impl Formatter for Harmless {
    as_inside! {
        begin_array();
        begin_array_value(first: bool);
        end_array_value();
        end_array();
        begin_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
        end_object();
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let harmless = |text: &str| escaped(text).to_string() == text;
        if harmless(text) {
            return out.write_all(text.as_bytes());
        }
        text.chars().try_for_each(|c| {
            let (mut utf8, mut utf16) = ([0; 4], [0; 2]);
            match c.encode_utf8(&mut utf8) {
                c if harmless(c) => out.write_all(c.as_bytes()),
                _ => {
                    (c.encode_utf16(&mut utf16).iter()).try_for_each(|u| write!(out, "\\u{u:04x}"))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn json_is_harmless_to_a_terminal_and_the_same_to_a_parser() {
        let hostile = "a\x1b]0;owned\x07\nb\u{9b}31m\x7f\u{202e}gpj \"größe\" 大\\";
        let value = json!({ hostile: [hostile, 1, {}, []], "plain": null });
        let mut out = Vec::new();
        write_json(&mut out, &value).expect("memory takes everything");
        let text = String::from_utf8(out).expect("text");
        for line in text.lines() {
            assert_eq!(escaped(line).to_string(), line);
        }
        for word in ["\\u009b31m\\u007f\\u202egpj", "größe", "大"] {
            assert!(text.contains(word), "no {word} in {text}");
        }
        let back: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(back, value);
    }
}
