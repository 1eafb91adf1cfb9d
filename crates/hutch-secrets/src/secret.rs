//! A value that does not print and is wiped when it goes.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Longest secret in bytes: tokens with signatures have a few thousand.
pub const SECRET_MAX: usize = 16 * 1024;

/// A credential.
///
/// Always fit for a header: printable ASCII without blanks at the ends, so that no value can add a header or a line.
/// It has no `Serialize`: whoever writes one down says so with [`Secret::expose`].
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

/// Why a value is no credential. Says nothing of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Nothing but blanks.
    #[error("it is empty")]
    Empty,
    /// Longer than [`SECRET_MAX`].
    #[error("it is longer than {SECRET_MAX} bytes")]
    TooLong,
    /// It could not stand in a header.
    #[error("it has a character that is not printable ASCII")]
    Character,
}

impl Secret {
    /// Takes a value as people and shells give it: blanks and line ends around it go.
    pub fn parse(value: impl Into<String>) -> Result<Self, SecretError> {
        // Wiped whatever becomes of it.
        let value = Zeroizing::new(value.into());
        let trimmed = value.trim();
        if trimmed.is_empty() {
            return Err(SecretError::Empty);
        }
        if trimmed.len() > SECRET_MAX {
            return Err(SecretError::TooLong);
        }
        if !trimmed.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(SecretError::Character);
        }
        Ok(Self(trimmed.to_owned()))
    }

    /// The value itself, for the one place where it is used.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_print() {
        let secret = Secret::parse("sk-very-secret").unwrap();
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "Secret Some(\n    Secret,\n)");
    }

    #[test]
    fn only_what_fits_a_header_is_taken() {
        assert_eq!(Secret::parse(" key \r\n").unwrap().expose(), "key");
        assert_eq!(Secret::parse(" \n"), Err(SecretError::Empty));
        assert_eq!(Secret::parse("a\r\nHost: b"), Err(SecretError::Character));
        assert_eq!(Secret::parse("schlüssel"), Err(SecretError::Character));
        assert_eq!(Secret::parse("a\0b"), Err(SecretError::Character));
        assert_eq!(Secret::parse("k".repeat(SECRET_MAX + 1)), Err(SecretError::TooLong));
        Secret::parse("k".repeat(SECRET_MAX)).unwrap();
    }
}
