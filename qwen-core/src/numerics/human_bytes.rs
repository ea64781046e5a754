//! Sizes as people read them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number of bytes as people read it: three digits in the largest unit that the number fills. All messages that name
/// sizes use it; fields keep the exact number.
///
/// ```
/// use qwen_core::HumanBytes;
/// assert_eq!(HumanBytes(1).to_string(), "1 byte");
/// assert_eq!(HumanBytes(988_097_824).to_string(), "942 MiB");
/// assert_eq!(HumanBytes(8_193_000_000).to_string(), "7.63 GiB");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HumanBytes(pub u64);

impl HumanBytes {
    /// Two numbers that a message compares: exact ones, where they would look alike.
    ///
    /// ```
    /// use qwen_core::HumanBytes;
    /// assert_eq!(HumanBytes::compared(9 << 30, 3 << 30), ["9.00 GiB", "3.00 GiB"]);
    /// assert_eq!(HumanBytes::compared(1025, 1024), ["1025 bytes", "1024 bytes"]);
    /// ```
    pub fn compared(a: u64, b: u64) -> [String; 2] {
        let texts = [a, b].map(|bytes| HumanBytes(bytes).to_string());
        if a != b && texts[0] == texts[1] { [a, b].map(|bytes| format!("{bytes} bytes")) } else { texts }
    }
}

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["MiB", "GiB", "TiB", "PiB", "EiB"];
        let text = match self.0 {
            1 => "1 byte".into(),
            bytes @ 0..1024 => format!("{bytes} bytes"),
            bytes => {
                let (mut value, mut unit) = (bytes as f64 / 1024.0, "KiB");
                for next in UNITS {
                    // What would be rounded to 1024 of a unit is 1 of the next.
                    if value >= 1023.5 {
                        (value, unit) = (value / 1024.0, next);
                    }
                }
                let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
                format!("{value:.digits$} {unit}")
            }
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.00 KiB"),
            (10_239, "10.0 KiB"),
            (102_399, "100 KiB"),
            (1_048_063, "1023 KiB"),
            (1_048_064, "1.00 MiB"),
            (16 << 30, "16.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(HumanBytes(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>10}|{:<8}|", HumanBytes(5 << 20), HumanBytes(3)), "  5.00 MiB|3 bytes |");
    }
}
