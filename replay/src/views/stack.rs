//! A call stack in text: innermost frame first, one frame a line, and what the marks on frames mean.

use std::io::{self, Write};

use super::text::{Paint, Screen, Tone, escaped, plural};
use crate::symbols::Frame;

/// Which marks were written. They are explained once, below all stacks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    inlined: bool,
    guessed: bool,
    near: bool,
}

impl Marks {
    /// Says what those that were written mean.
    pub fn write_legend(self, out: &mut dyn Write, paint: Paint) -> io::Result<()> {
        let legend = [
            (
                self.inlined,
                "[inlined]: the compiler put this function into the one below it",
            ),
            (
                self.guessed,
                "[guessed]: found without unwind information; plausible, not proved, and so is what follows",
            ),
            (
                self.near,
                "(near ...): the last symbol before the place; the code may be another function's",
            ),
        ];
        let written = legend.iter().filter(|(written, _)| *written);
        for (i, (_, meaning)) in written.enumerate() {
            if i == 0 {
                writeln!(out)?;
            }
            writeln!(out, "{}", paint.tone(Tone::Dim, meaning))?;
        }
        Ok(())
    }
}

/// Writes the frames, each on a line of its own after `indent`. Frames of libc and of allocators are
/// dimmed: the call passed through them, the cause lies further out.
pub fn write_stack(
    out: &mut dyn Write,
    indent: &str,
    frames: &[Frame],
    screen: Screen,
    marks: &mut Marks,
) -> io::Result<()> {
    let paint = screen.paint();
    if frames.is_empty() {
        let none = paint.tone(Tone::Dim, "(no stack was taken)");
        return writeln!(out, "{indent}{none}");
    }
    // One line more is no longer than to say that it is missing.
    let shown = match frames.len() {
        all if all <= screen.depth.saturating_add(1) => all,
        _ => screen.depth,
    };
    for (i, frame) in frames.iter().take(shown).enumerate() {
        let tone = if frame.is_plumbing() {
            Tone::Dim
        } else {
            Tone::Plain
        };
        let line = format!("#{i:<2} {}", escaped(&line(frame, marks)));
        writeln!(out, "{indent}{}", paint.tone(tone, line))?;
    }
    let mut remark = |text: &str| writeln!(out, "{indent}{}", paint.tone(Tone::Dim, text));
    if let more @ 1.. = frames.len() - shown {
        let s = plural(more as u64);
        remark(&format!("    ({more} more frame{s}; --depth 0 shows all)"))?;
    }
    if frames.last().is_some_and(|frame| frame.truncated) {
        remark("    (the stack goes on; it could not be followed further)")?;
    }
    Ok(())
}

/// `function (module) file:line`, not escaped yet.
fn line(frame: &Frame, marks: &mut Marks) -> String {
    let mut line = frame.to_string();
    marks.inlined |= frame.inlined;
    marks.guessed |= frame.guessed;
    marks.near |= frame.near;
    if frame.inlined {
        line.push_str(" [inlined]");
    }
    if frame.guessed {
        line.push_str(" [guessed]");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64) -> Frame {
        Frame {
            function: Some(format!("f{number}")),
            module: "/usr/bin/program".into(),
            file: None,
            line: None,
            offset: number,
            near: false,
            inlined: false,
            guessed: false,
            truncated: false,
        }
    }

    fn lines(frames: &[Frame], depth: usize) -> Vec<String> {
        let mut out = Vec::new();
        let screen = Screen {
            depth,
            ..Screen::PLAIN
        };
        write_stack(&mut out, "  ", frames, screen, &mut Marks::default()).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        let mut frames: Vec<Frame> = (0..9).map(frame).collect();
        assert_eq!(lines(&frames, usize::MAX).len(), 9);
        assert_eq!(lines(&frames, 8).len(), 9);
        assert_eq!(
            lines(&frames, 2),
            [
                "  #0  f0 (program)",
                "  #1  f1 (program)",
                "      (7 more frames; --depth 0 shows all)"
            ]
        );
        frames[8].truncated = true;
        let cut = "      (the stack goes on; it could not be followed further)";
        assert_eq!(lines(&frames, 2).last().unwrap(), cut);
        assert_eq!(lines(&frames, 9).last().unwrap(), cut);
        assert_eq!(lines(&[], 9), ["  (no stack was taken)"]);
    }

    #[test]
    fn how_a_frame_is_known_is_told() {
        let marked = Frame {
            guessed: true,
            inlined: true,
            ..frame(1)
        };
        assert_eq!(
            lines(&[marked], 1),
            ["  #0  f1 (program) [inlined] [guessed]"]
        );
    }

    #[test]
    fn marks_that_are_seen_are_explained() {
        let legend = |frames: &[Frame]| {
            let (mut out, mut marks) = (Vec::new(), Marks::default());
            let screen = Screen {
                depth: 1,
                ..Screen::PLAIN
            };
            write_stack(&mut out, "", frames, screen, &mut marks).unwrap();
            out.clear();
            marks.write_legend(&mut out, screen.paint()).unwrap();
            String::from_utf8(out).unwrap()
        };
        let mut frames: Vec<Frame> = (0..3).map(frame).collect();
        frames[2].guessed = true;
        assert_eq!(legend(&frames), "", "it is not shown");
        frames[0].inlined = true;
        let inlined = "\n[inlined]: the compiler put this function into the one below it\n";
        assert_eq!(legend(&frames), inlined);
        (frames[0].guessed, frames[0].near) = (true, true);
        let words = ["", "[inlined]", "[guessed]", "(near ...)"];
        let all = legend(&frames);
        assert!(
            all.lines()
                .zip(words)
                .all(|(line, word)| line.starts_with(word)),
            "{all}"
        );
        assert_eq!(all.lines().count(), words.len());
    }
}
