//! Bytes as people write digests and ids.

use std::fmt;

/// Bytes in lowercase hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_two_digits() {
        assert_eq!(Hex(&[0, 7, 0xab, 0xff]).to_string(), "0007abff");
        assert_eq!(Hex(&[]).to_string(), "");
    }
}
