//! Compressed streams, told by their first bytes: whoever gives us an archive need not say.

use std::io::{self, BufRead, BufReader, Cursor, Read};

/// A stream with its compression taken away, or as it is.
pub(crate) struct Decompressed<R: BufRead>(Kind<R>);

/// What was read to tell, and the rest.
type Whole<R> = io::Chain<Cursor<Vec<u8>>, R>;

enum Kind<R: BufRead> {
    Plain(Whole<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Whole<R>>>),
    Xz(Box<liblzma::bufread::XzDecoder<Whole<R>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Whole<R>>>>),
}

impl<R: BufRead> std::fmt::Debug for Decompressed<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressed").finish_non_exhaustive()
    }
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Memory that a stream may ask for: what the programs allow at their highest ordinary level.
const XZ_MEMORY: u64 = 128 << 20;
const ZSTD_WINDOW_LOG: u32 = 27;

impl<R: BufRead> Decompressed<R> {
    /// Looks at the start of `input`.
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let mut start = Vec::new();
        // A pipe may give its first bytes one by one.
        (&mut input).take(XZ.len() as u64).read_to_end(&mut start)?;
        let whole = Cursor::new(start.clone()).chain(input);
        Ok(Self(if start.starts_with(GZIP) {
            Kind::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(whole)))
        } else if start.starts_with(XZ) {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )?;
            Kind::Xz(Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream)))
        } else if start.starts_with(ZSTD) {
            let mut decoder = zstd::Decoder::new(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Kind::Zstd(Box::new(decoder))
        } else {
            Kind::Plain(whole)
        }))
    }
}

impl<R: BufRead> Decompressed<R> {
    /// Says whether the stream was not compressed.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.0, Kind::Plain(_))
    }
}

impl<R: BufRead> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(input) => input.read(buffer),
            Kind::Gzip(input) => input.read(buffer),
            Kind::Xz(input) => input.read(buffer),
            Kind::Zstd(input) => input.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "programs of the test's own, without the clean environment"
    )]
    fn what_the_programs_pack_is_unpacked() {
        let content: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("content");
        io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), &content).unwrap();
        for program in ["cat", "gzip", "xz", "zstd"] {
            let flag = if program == "cat" { "--" } else { "-c" };
            let output =
                std::process::Command::new(program).args([flag]).arg(&path).output().unwrap();
            assert!(output.status.success(), "{program}");
            // Two streams one after the other, as some writers make them.
            for times in [1, 2] {
                let packed = output.stdout.repeat(times);
                let mut read = Vec::new();
                Decompressed::new(packed.as_slice()).unwrap().read_to_end(&mut read).unwrap();
                assert_eq!(read, content.repeat(times), "{program}");
            }
        }
    }

    #[test]
    fn short_and_damaged_streams_are_survived() {
        for bytes in [b"".as_slice(), b"x", GZIP, XZ, ZSTD, &[0x1f, 0x8b, 8, 1, 2, 3, 4, 5, 6]] {
            let read = Decompressed::new(bytes).and_then(|mut input| {
                let mut read = Vec::new();
                input.read_to_end(&mut read).map(|_| read)
            });
            assert!(read.is_err() || read.unwrap() == bytes);
        }
    }
}
