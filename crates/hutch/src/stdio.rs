//! Our standard streams, read and written by threads of their own.
//!
//! A blocked pipe or terminal must not keep signals or the other streams waiting, and such descriptors are shared with
//! other programs, so they cannot be made non-blocking.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::thread;

use tokio::sync::{mpsc, oneshot};

/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;
/// Pieces on the way between a thread and the session.
const PIECES: usize = 8;

/// The bytes of a stream that we read; the channel ends at the end of the stream.
pub(crate) type Input = mpsc::Receiver<Vec<u8>>;

/// Reads a stream until its end, or until nobody listens any more.
pub(crate) fn read(stream: OwnedFd) -> Input {
    let (sender, receiver) = mpsc::channel(PIECES);
    // Not joined: it may wait for a key for ever, and ends with the process.
    thread::spawn(move || {
        let mut stream = File::from(stream);
        let mut piece = vec![0; PIECE];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(piece[..length].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that was hung up gives EIO: its end.
                Err(_) => return,
            }
        }
    });
    receiver
}

/// A stream that we write.
#[derive(Debug)]
pub(crate) struct Output {
    pieces: mpsc::Sender<Vec<u8>>,
    end: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Writes to this stream.
    pub(crate) fn new(stream: OwnedFd) -> Self {
        let (pieces, mut receiver) = mpsc::channel::<Vec<u8>>(PIECES);
        let (sender, end) = oneshot::channel();
        thread::spawn(move || {
            let mut stream = File::from(stream);
            let mut result = Ok(());
            while let Some(piece) = receiver.blocking_recv() {
                result = stream.write_all(&piece);
                if result.is_err() {
                    break;
                }
            }
            // Before the result is told: who learns of it closes nothing that is still open here.
            drop((receiver, stream));
            let _unheard = sender.send(result);
        });
        Self { pieces, end }
    }

    /// Hands some bytes over; false when the stream cannot be written any more.
    pub(crate) async fn write(&self, bytes: Vec<u8>) -> bool {
        self.pieces.send(bytes).await.is_ok()
    }

    /// Waits until everything is written, or could not be.
    pub(crate) async fn finish(self) -> io::Result<()> {
        drop(self.pieces);
        self.end.await.unwrap_or_else(|_| Err(io::Error::other("the writing thread ended")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_ends() {
        let (reader, writer) = io::pipe().unwrap();
        let mut input = read(reader.into());
        let output = Output::new(writer.into());
        let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
        let expected = bytes.clone();
        let write = async move {
            assert!(output.write(bytes).await);
            output.finish().await.unwrap();
        };
        let read = async move {
            let mut all = Vec::new();
            while let Some(piece) = input.recv().await {
                all.extend(piece);
            }
            all
        };
        let ((), all) = tokio::join!(write, read);
        assert!(all == expected);
    }

    #[tokio::test]
    async fn a_reader_that_went_away_is_noticed() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = Output::new(writer.into());
        while output.write(vec![0; 10]).await {}
        assert_eq!(output.finish().await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
