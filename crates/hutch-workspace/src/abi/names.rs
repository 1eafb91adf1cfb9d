//! Names of directory entries: exactly one component, so that no name can lead out of its directory.

use std::ffi::CStr;

/// Longest name that Linux file systems keep.
const NAME_MAX: usize = 255;

/// One component of a path: not empty, not `.` or `..`, without a slash, at most 255 bytes. Any other bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

/// Why bytes are no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, or with a slash.
    #[error("not a single component")]
    NotOneComponent,
    /// Longer than any file system keeps.
    #[error("longer than 255 bytes")]
    TooLong,
}

impl<'a> Name<'a> {
    /// Checks the name.
    pub fn parse(name: &'a CStr) -> Result<Self, NameError> {
        let bytes = name.to_bytes();
        match bytes {
            b"" | b"." | b".." => Err(NameError::NotOneComponent),
            _ if bytes.contains(&b'/') => Err(NameError::NotOneComponent),
            _ if bytes.len() > NAME_MAX => Err(NameError::TooLong),
            _ => Ok(Self(name)),
        }
    }

    /// The name for a system call.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// The name without its terminator.
    pub fn bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}
