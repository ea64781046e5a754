//! Writes an answer while it arrives: thinking dimmed, and nothing that could take over the terminal.

use std::borrow::Cow;
use std::io::{self, Write};

use super::screen::{DIM, RESET, Screen};

/// What thinking begins and ends with.
pub(crate) const THINK: [&str; 2] = ["<think>", "</think>"];

/// How far an answer has come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    /// Nothing but white space, or a part of `<think>`.
    Start,
    Thinking,
    Answer,
}

/// Writes the pieces of one answer. Where there are no colours, the text is what the model wrote.
pub(crate) struct AnswerWriter<W> {
    out: W,
    screen: Screen,
    part: Part,
    /// What may be the beginning of a marker.
    held: String,
    ends_line: bool,
}

impl<W: Write> AnswerWriter<W> {
    /// `thinks`: the prompt ended with `<think>`, so that the answer begins within.
    pub(crate) fn new(out: W, screen: Screen, thinks: bool) -> io::Result<Self> {
        let part = if thinks { Part::Thinking } else { Part::Start };
        let mut writer = AnswerWriter { out, screen, part, held: String::new(), ends_line: true };
        if thinks {
            writer.style(DIM)?;
        }
        Ok(writer)
    }

    /// Write a piece, and show it at once.
    pub(crate) fn push(&mut self, piece: &str) -> io::Result<()> {
        self.held += piece;
        if self.part == Part::Start {
            let text = self.held.trim_start();
            if text.starts_with(THINK[0]) {
                self.part = Part::Thinking;
                self.style(DIM)?;
            } else if !THINK[0].starts_with(text) {
                self.part = Part::Answer;
            }
        }
        let ready = match self.part {
            Part::Start => 0,
            Part::Answer => self.held.len(),
            Part::Thinking => match self.held.find(THINK[1]) {
                Some(at) => {
                    self.write(at + THINK[1].len())?;
                    self.style(RESET)?;
                    self.part = Part::Answer;
                    self.held.len()
                }
                None => self.held.len() - started(&self.held, THINK[1]),
            },
        };
        self.write(ready)?;
        self.out.flush()
    }

    /// Write what was held back, and end the line.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write(self.held.len())?;
        if self.part == Part::Thinking {
            self.style(RESET)?;
        }
        if !std::mem::replace(&mut self.ends_line, true) {
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    /// Write the first `bytes` of what is held.
    fn write(&mut self, bytes: usize) -> io::Result<()> {
        let rest = self.held.split_off(bytes);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            self.ends_line = text.ends_with('\n');
        }
        let shown = if self.screen.answers_on_terminal { printable(&text) } else { Cow::Borrowed(text.as_str()) };
        self.out.write_all(shown.as_bytes())
    }

    fn style(&mut self, style: &str) -> io::Result<()> {
        if self.screen.answers_in_colour { self.out.write_all(style.as_bytes()) } else { Ok(()) }
    }
}

/// How many of the last bytes of `text` are a beginning of `marker`.
fn started(text: &str, marker: &str) -> usize {
    (1..marker.len()).rev().find(|&bytes| text.ends_with(&marker[..bytes])).unwrap_or(0)
}

/// The text without what a terminal would obey: control characters become their pictures, so that an answer (of a text
/// that somebody else wrote, perhaps) neither moves the cursor nor sets the title.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(obeyed) {
        return text.into();
    }
    let pictures = text.chars().filter(|c| *c != '\r').map(|c| match c {
        '\x7f' => '\u{2421}',
        c if obeyed(c) => {
            char::from_u32(0x2400 + u32::from(c)).filter(|_| c < ' ').unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        c => c,
    });
    pictures.collect()
}

#[cfg(test)]
mod tests {
    use super::super::args::Color;
    use super::*;

    fn written(color: Color, thinks: bool, pieces: &[&str]) -> String {
        let mut out = Vec::new();
        let mut writer = AnswerWriter::new(&mut out, Screen::new(color, false), thinks).unwrap();
        for piece in pieces {
            writer.push(piece).unwrap();
        }
        writer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn thinking_is_dim_however_it_is_cut() {
        let text = "\n<think>So: 1 < 2.</think>\n\nYes.";
        let expected = format!("{DIM}\n<think>So: 1 < 2.</think>{RESET}\n\nYes.\n");
        for size in 1..=text.len() {
            let pieces: Vec<&str> = text.as_bytes().chunks(size).map(|piece| str::from_utf8(piece).unwrap()).collect();
            assert_eq!(written(Color::Always, false, &pieces), expected, "pieces of {size}");
            assert_eq!(written(Color::Never, false, &pieces), format!("{text}\n"), "pieces of {size}");
        }
    }

    #[test]
    fn thinking_may_begin_in_the_prompt_and_never_end() {
        assert_eq!(written(Color::Always, true, &["Hm.</th", "ink>No."]), format!("{DIM}Hm.</think>{RESET}No.\n"));
        assert_eq!(written(Color::Always, true, &["Hm.</th"]), format!("{DIM}Hm.</th{RESET}\n"));
        assert_eq!(written(Color::Always, false, &["<think>Hm\n"]), format!("{DIM}<think>Hm\n{RESET}"));
    }

    #[test]
    fn a_mention_of_the_marker_is_text() {
        assert_eq!(
            written(Color::Always, false, &["Models write <think>", " first."]),
            "Models write <think> first.\n"
        );
        assert_eq!(written(Color::Always, false, &["<thi"]), "<thi\n");
        assert_eq!(written(Color::Always, false, &[]), "");
    }

    #[test]
    fn terminals_obey_no_answer() {
        assert_eq!(printable("a\tb\nc"), "a\tb\nc");
        assert_eq!(printable("\x1b]0;title\x07\u{9b}2J\x7f\r\n"), "␛]0;title␇\u{fffd}2J␡\n");
    }
}
