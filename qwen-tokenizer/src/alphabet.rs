//! The alphabet of byte-level BPE: one printable character for each byte.

/// Appends the bytes that a byte-level token stands for.
///
/// A token with a character outside the byte alphabet (an added token with a space, say) stands for itself.
pub(crate) fn push_token_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte that a character of the byte-level alphabet stands for.
///
/// Printable bytes of Latin-1 stand for themselves; the other 68 follow from U+0100 on, in their order:
/// 0 to 32, 127 to 160, 173.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        n @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(n).ok(),
        n @ 0x100..=0x120 => u8::try_from(n - 0x100).ok(),
        n @ 0x121..=0x142 => u8::try_from(n - 0x121 + 127).ok(),
        0x143 => Some(173),
        _ => None,
    }
}

/// The character of the byte-level alphabet that stands for a byte; the reverse of [`byte_of`].
pub(crate) fn char_of(byte: u8) -> char {
    let n = u32::from(byte);
    char::from_u32(match n {
        0..=0x20 => n + 0x100,
        0x7f..=0xa0 => n - 0x7f + 0x121,
        0xad => 0x143,
        n => n,
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_every_byte_once() {
        let mut bytes: Vec<u8> = ('\0'..='\u{200}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert!((0..=255).all(|byte| byte_of(char_of(byte)) == Some(byte)));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn a_token_outside_the_alphabet_is_its_own_text() {
        let mut bytes = b"x".to_vec();
        push_token_bytes("aĠ b", &mut bytes);
        assert_eq!(bytes, "xaĠ b".as_bytes());
    }
}
