//! Keeps a secret out of what comes back: finds its bytes in a stream, however they are cut, and masks them.
//!
//! An upstream that reflects a request (an echo service, an error page, a debug header) would hand the guest the secret
//! that we put in. So everything that answers such a request goes through a [`Scrubber`]: it looks for the secret and for
//! its usual spellings (see `forms`) and overwrites them, byte for byte, so that lengths that were announced stay true.
//!
//! Streams are not buffered. Held back is only a suffix that really is the beginning of a needle, and of that only what
//! could tell something: a few bytes go out after a moment of silence, because whoever waits for the last byte of a
//! message must get it ([`Scrubber::release`]). What follows is still masked then.
//!
//! ```text
//!   arrived ──▶ pending ──▶ out
//!               [released |     held     ]
//!                already    the beginning
//!                went out   of a needle
//! ```
//!
//! Invariant: no needle is part of another one and none holds the mask byte. So occurrences are found from left to right
//! in one pass, masking never makes a new one, and the result does not depend on how the stream was cut.

pub(crate) mod body;
pub(crate) mod decode;
mod forms;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, BuildError, MatchKind};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hutch_secrets::Secret;

use crate::exchange::Scrub;

/// A secret shorter than this is not looked for: it would be found everywhere.
pub(crate) const SHORTEST: usize = 6;
/// At most so many bytes of a needle's beginning go out unmasked, when nothing follows for a while.
const RELEASE_MAX: usize = 8;
/// What overwrites a secret, in the order of preference: what no needle holds.
const MASKS: &[u8] = b"*#_.~!^|@0zqxjkwv9876543215ZQXJKWVbcdfghlmnprstyaeiou";

/// The spellings of some secrets that are looked for.
pub(crate) struct Needles {
    /// In lower case: letters are compared without case.
    needles: Vec<Box<[u8]>>,
    /// Which bytes begin a needle.
    begins: [bool; 256],
    longest: usize,
    release: usize,
    mask: u8,
    automaton: AhoCorasick,
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Needles").field("count", &self.needles.len()).finish_non_exhaustive()
    }
}

impl Drop for Needles {
    fn drop(&mut self) {
        // The automaton holds them in another form, which nobody can wipe.
        zeroize::Zeroize::zeroize(&mut self.needles);
    }
}

impl Needles {
    /// All spellings of these secrets.
    pub(crate) fn new<'a>(
        secrets: impl IntoIterator<Item = &'a Secret>,
    ) -> Result<Self, BuildError> {
        let mut forms = Vec::new();
        for secret in secrets {
            forms.extend(forms::of(secret.expose().as_bytes()));
        }
        forms.iter_mut().for_each(|form| form.make_ascii_lowercase());
        forms.retain(|form| form.len() >= SHORTEST);
        forms.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        let mut needles: Vec<Box<[u8]>> = Vec::new();
        for form in forms {
            // Whatever holds a needle is found by that needle.
            if !needles.iter().any(|needle| holds(&form, needle)) {
                needles.push(form.into_boxed_slice());
            }
        }
        let mut begins = [false; 256];
        for first in needles.iter().filter_map(|needle| needle.first()) {
            begins[usize::from(*first)] = true;
            begins[usize::from(first.to_ascii_uppercase())] = true;
        }
        let masks =
            |mask: u8| needles.iter().any(|needle| needle.contains(&mask.to_ascii_lowercase()));
        let mask = MASKS.iter().copied().find(|mask| !masks(*mask)).unwrap_or(b'*');
        let shortest = needles.iter().map(|needle| needle.len()).min().unwrap_or(0);
        // A table of all transitions would take seconds and megabytes for the thousands of bytes of a token.
        let automaton = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::LeftmostFirst)
            .ascii_case_insensitive(true)
            .build(&needles)?;
        Ok(Self {
            longest: needles.iter().map(|needle| needle.len()).max().unwrap_or(0),
            release: (shortest / 4).min(RELEASE_MAX),
            needles,
            begins,
            mask,
            automaton,
        })
    }

    /// Where needles are, from left to right, none overlapping another.
    fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        self.automaton.find_iter(text).map(|found| found.range()).collect()
    }

    /// Overwrites all needles; says whether there were any.
    pub(crate) fn mask(&self, text: &mut [u8]) -> bool {
        let found = self.find(text);
        for range in &found {
            text[range.clone()].fill(self.mask);
        }
        !found.is_empty()
    }

    /// Where the longest suffix begins that is the beginning of a needle and not a whole one; the end if none is.
    fn unfinished(&self, text: &[u8], from: usize) -> usize {
        let earliest = text.len().saturating_sub(self.longest.saturating_sub(1)).max(from);
        (earliest..text.len())
            .find(|&start| {
                let suffix = &text[start..];
                self.begins[usize::from(suffix[0])]
                    && self.needles.iter().any(|needle| {
                        needle.len() > suffix.len()
                            && needle[..suffix.len()].eq_ignore_ascii_case(suffix)
                    })
            })
            .unwrap_or(text.len())
    }

    /// Masks header or trailer values in place. A header that has a secret in its name goes.
    pub(crate) fn scrub_headers(&self, headers: &mut HeaderMap) {
        let named: Vec<_> = headers
            .keys()
            .filter(|name| !self.find(name.as_str().as_bytes()).is_empty())
            .cloned()
            .collect();
        for name in named {
            headers.remove(name);
        }
        for value in headers.values_mut() {
            let mut bytes = value.as_bytes().to_vec();
            if self.mask(&mut bytes) {
                // The mask is printable: what was a value still is one.
                *value = HeaderValue::from_bytes(&bytes)
                    .unwrap_or_else(|_| HeaderValue::from_static(""));
            }
        }
    }
}

/// Whether a text has the needle in it.
fn holds(text: &[u8], needle: &[u8]) -> bool {
    let Some(last) = text.len().checked_sub(needle.len()) else { return false };
    (0..=last).any(|at| text[at] == needle[0] && text[at..].starts_with(needle))
}

/// Masks the needles of one stream; see the module.
#[derive(Debug)]
pub(crate) struct Scrubber {
    needles: Arc<Needles>,
    pending: Vec<u8>,
    /// So many bytes of `pending` went out before.
    released: usize,
}

impl Scrubber {
    pub(crate) fn new(needles: Arc<Needles>) -> Self {
        Self { needles, pending: Vec::new(), released: 0 }
    }

    /// How many bytes are held back.
    pub(crate) fn held(&self) -> usize {
        self.pending.len() - self.released
    }

    /// Takes what arrived and gives what may go on. Copies nothing when there is nothing to mask or to hold back.
    pub(crate) fn push(&mut self, arrived: Bytes) -> Bytes {
        if self.pending.is_empty()
            && self.needles.find(&arrived).is_empty()
            && self.needles.unfinished(&arrived, 0) == arrived.len()
        {
            return arrived;
        }
        let mut out = Vec::with_capacity(self.held() + arrived.len());
        self.scrub(&arrived, false, &mut out);
        Bytes::from(out)
    }

    /// Gives what is held back: no more will come.
    pub(crate) fn finish(&mut self) -> Bytes {
        let mut out = Vec::new();
        self.scrub(&[], true, &mut out);
        Bytes::from(out)
    }
}

impl Scrub for Scrubber {
    fn scrub(&mut self, arrived: &[u8], end: bool, out: &mut Vec<u8>) {
        self.pending.extend_from_slice(arrived);
        let found = self.needles.find(&self.pending);
        for range in &found {
            self.pending[range.clone()].fill(self.needles.mask);
        }
        let done = found.last().map_or(0, |last| last.end);
        let hold =
            if end { self.pending.len() } else { self.needles.unfinished(&self.pending, done) };
        if hold > self.released {
            out.extend_from_slice(&self.pending[self.released..hold]);
        }
        self.pending.drain(..hold);
        self.released = self.released.saturating_sub(hold);
    }

    fn releasable(&self) -> bool {
        self.released < self.pending.len().min(self.needles.release)
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        let until = self.pending.len().min(self.needles.release).max(self.released);
        out.extend_from_slice(&self.pending[self.released..until]);
        self.released = until;
    }
}

#[cfg(test)]
mod tests;
