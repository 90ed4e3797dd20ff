//! A call stack in text: innermost frame first, one frame a line.

use std::io::{self, Write};

use super::text::{Paint, Tone, escaped};
use crate::symbols::Frame;

/// Writes the frames, each on a line of its own after `indent`. Frames of libc and of allocators are
/// dimmed: the call passed through them, the cause lies further out.
pub fn write_stack(
    out: &mut dyn Write,
    indent: &str,
    frames: &[Frame],
    paint: Paint,
) -> io::Result<()> {
    if frames.is_empty() {
        return writeln!(
            out,
            "{indent}{}",
            paint.tone(Tone::Dim, "(no stack was taken)")
        );
    }
    for (i, frame) in frames.iter().enumerate() {
        let tone = if frame.is_plumbing() {
            Tone::Dim
        } else {
            Tone::Plain
        };
        let line = format!("#{i:<2} {}", escaped(&line(frame)));
        writeln!(out, "{indent}{}", paint.tone(tone, line))?;
        if frame.truncated {
            let rest = "    (the stack goes on; it could not be followed further)";
            writeln!(out, "{indent}{}", paint.tone(Tone::Dim, rest))?;
        }
    }
    Ok(())
}

/// `function (module) file:line`, not escaped yet.
fn line(frame: &Frame) -> String {
    let mut line = frame.to_string();
    if frame.inlined {
        line.push_str(" [inlined]");
    }
    if frame.guessed {
        line.push_str(" [guessed]");
    }
    line
}
