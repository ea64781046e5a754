//! The text around calls: the line breaks next to a call belong to its form, and what stands before and after it is told
//! apart by one.

/// Joins the texts of an answer, piece by piece.
#[derive(Debug, Clone, Default)]
pub(super) struct TextJoiner {
    /// Space that is part of the text if more text follows.
    space: String,
    has_text: bool,
    is_behind_call: bool,
}

impl TextJoiner {
    /// What `text` adds to the texts so far.
    pub(super) fn push(&mut self, text: &str) -> String {
        let text = if self.is_behind_call { text.trim_start() } else { text };
        let rest = text.trim_end();
        if rest.is_empty() {
            self.space.push_str(text);
            return String::new();
        }
        let mut added = std::mem::take(&mut self.space);
        if std::mem::take(&mut self.is_behind_call) && self.has_text {
            added.push('\n');
        }
        added.push_str(rest);
        self.has_text = true;
        self.space.push_str(text.get(rest.len()..).unwrap_or_default());
        added
    }

    /// A call, or a thought, stands here.
    pub(super) fn call(&mut self) {
        self.space.clear();
        self.is_behind_call = true;
    }

    /// What the end of the answer adds: without calls, every space counts.
    pub(super) fn finish(&mut self, has_calls: bool) -> String {
        let space = std::mem::take(&mut self.space);
        if has_calls { String::new() } else { space }
    }
}
