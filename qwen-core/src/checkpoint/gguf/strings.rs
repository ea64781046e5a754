//! Lists of strings, stored as one text: a vocabulary has 150,000 of them.

use std::fmt;

use super::reader::Reader;
use crate::error::Result;

/// The strings of a list.
///
/// ```
/// use qwen_core::checkpoint::gguf::Strings;
///
/// let strings: Strings = ["in", "", "on"].into_iter().collect();
/// assert_eq!((strings.len(), strings.get(2), strings.get(3)), (3, Some("on"), None));
/// assert_eq!(strings.iter().collect::<Vec<&str>>(), ["in", "", "on"]);
/// ```
#[derive(Clone, PartialEq, Default)]
pub struct Strings {
    text: String,
    /// The end of each string in the text.
    ends: Vec<usize>,
}

impl Strings {
    /// Their number.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string of this index.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.text.get(start..end)
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let count = reader.count(size_of::<u64>() as u64, size_of::<usize>())?;
        let mut strings = Strings { text: String::new(), ends: Vec::with_capacity(count) };
        for _ in 0..count {
            reader.append_string(&mut strings.text)?;
            strings.ends.push(strings.text.len());
        }
        Ok(strings)
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        strings.into_iter().fold(Strings::default(), |mut all, string| {
            all.text.push_str(string.as_ref());
            all.ends.push(all.text.len());
            all
        })
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
