//! Descriptors that a program was started with, by the numbers that it was told.
#![expect(unsafe_code, reason = "a number can only be turned into a descriptor by promising it")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// The descriptor of this number, which [`crate::spawn::Launch::inherit`] gave in the parent; close-on-exec.
///
/// It is a duplicate: the number itself stays open for as long as the process lives, so that nothing else gets it.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is not -1, and the value is used for the one call below, in which the kernel checks that it is
    // open and makes a descriptor of its own.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_number_is_its_descriptor() {
        let (mut reader, writer) = io::pipe().unwrap();
        let duplicate = inherited(writer.as_raw_fd()).unwrap();
        io::PipeWriter::from(duplicate).write_all(b"x").unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_number_of_nothing_is_an_error() {
        assert!(inherited(-1).is_err());
        assert!(inherited(1 << 20).is_err());
    }
}
