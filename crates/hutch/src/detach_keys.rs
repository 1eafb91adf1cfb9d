//! The key sequence that leaves a session while its process goes on, in Docker's notation.

/// What is used unless something else is asked for.
pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Something that is no key sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a key: write a single character, or `ctrl-` with a letter or one of @ [ \\ ] ^ _"
)]
pub(crate) struct KeysError(String);

/// Reads a sequence such as `ctrl-p,ctrl-q` or `a`; an empty text is no sequence at all.
pub(crate) fn parse(text: &str) -> Result<Vec<u8>, KeysError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    // A comma alone is a key too.
    if text == "," {
        return Ok(vec![b',']);
    }
    text.split(',').map(key).collect()
}

fn key(text: &str) -> Result<u8, KeysError> {
    let wrong = || KeysError(text.to_owned());
    match text.as_bytes() {
        [byte] if byte.is_ascii() => Ok(*byte),
        bytes => match bytes.strip_prefix(b"ctrl-") {
            Some([letter @ b'a'..=b'z']) => Ok(letter - b'a' + 1),
            Some([b'@']) => Ok(0),
            Some([sign @ (b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(sign - b'[' + 27),
            _ => Err(wrong()),
        },
    }
}

/// What a scanner says about some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Bytes for the session.
    pub(crate) pass: Vec<u8>,
    /// The whole sequence came: leave. What came after it is dropped.
    pub(crate) leave: bool,
}

/// Finds the sequence in what is typed, however it is cut into pieces.
///
/// A byte that may begin the sequence is held back until the next one decides, as Docker does.
#[derive(Debug)]
pub(crate) struct Scanner {
    keys: Vec<u8>,
    /// How many keys of the sequence have come.
    matched: usize,
}

impl Scanner {
    /// Looks for these keys; without any it finds nothing.
    pub(crate) fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Looks at some bytes.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Scanned {
        if self.keys.is_empty() {
            return Scanned { pass: bytes.to_vec(), leave: false };
        }
        let mut pass = Vec::with_capacity(bytes.len() + self.matched);
        for byte in bytes {
            self.step(*byte, &mut pass);
            if self.matched == self.keys.len() {
                return Scanned { pass, leave: true };
            }
        }
        Scanned { pass, leave: false }
    }

    /// What was held back and is nobody's: at the end of the input.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let rest = self.keys[..self.matched].to_vec();
        self.matched = 0;
        rest
    }

    fn step(&mut self, byte: u8, pass: &mut Vec<u8>) {
        while self.matched > 0 && self.keys[self.matched] != byte {
            // The longest end of what has come that may still begin the sequence stays held back.
            let came = &self.keys[..self.matched];
            let keep = (1..self.matched)
                .rev()
                .find(|&keep| came[self.matched - keep..] == came[..keep])
                .unwrap_or(0);
            pass.extend_from_slice(&came[..self.matched - keep]);
            self.matched = keep;
        }
        if self.keys[self.matched] == byte {
            self.matched += 1;
        } else {
            pass.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dockers_notation_is_read() {
        assert_eq!(parse(DEFAULT), Ok(vec![16, 17]));
        assert_eq!(parse("ctrl-a,x"), Ok(vec![1, b'x']));
        assert_eq!(
            parse("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_"),
            Ok(vec![0, 27, 28, 29, 30, 31])
        );
        assert_eq!(parse("a,b,c"), Ok(b"abc".to_vec()));
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse(","), Ok(b",".to_vec()));
        for wrong in ["ctrl-", "ctrl-A", "ctrl-1", "ab", "é", "a,,b", "ctrl-ab"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_only_begins_the_sequence_is_passed_late() {
        let mut scanner = Scanner::new(vec![16, 17]);
        assert_eq!(scanner.scan(b"a\x10"), Scanned { pass: b"a".to_vec(), leave: false });
        assert_eq!(scanner.scan(b"b"), Scanned { pass: b"\x10b".to_vec(), leave: false });
        assert_eq!(scanner.scan(b"\x10\x10\x11z"), Scanned { pass: b"\x10".to_vec(), leave: true });
    }

    #[test]
    fn a_sequence_that_repeats_itself_is_found() {
        let mut scanner = Scanner::new(b"aab".to_vec());
        assert_eq!(scanner.scan(b"aaab"), Scanned { pass: b"a".to_vec(), leave: true });
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(
            keys in proptest::collection::vec(0_u8..3, 1..4),
            input in proptest::collection::vec(0_u8..3, 0..40),
            cut in 0_usize..40,
        ) {
            let found = input.windows(keys.len()).position(|window| window == keys);
            let mut scanner = Scanner::new(keys.clone());
            let cut = cut.min(input.len());
            let mut pass = Vec::new();
            let mut leave = false;
            for piece in [&input[..cut], &input[cut..]] {
                if !leave {
                    let scanned = scanner.scan(piece);
                    pass.extend(scanned.pass);
                    leave = scanned.leave;
                }
            }
            prop_assert_eq!(leave, found.is_some());
            match found {
                Some(at) => prop_assert_eq!(&pass[..], &input[..at]),
                None => {
                    pass.extend(scanner.rest());
                    prop_assert_eq!(pass, input);
                }
            }
        }
    }
}
