//! The byte streams of a session, copied by tasks of their own.

use std::io;
use std::time::Duration;

use hutch_api::Open;
use hutch_wire::guest::{ExecSpec, Stdio};
use hutch_wire::{Connection, Stream};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::open;
use crate::detach_keys::Scanner;
use crate::stdio::{Input, Output};

/// Bytes that are read from the session at once.
const PIECE: usize = 32 * 1024;
/// After the process has ended its output is complete: a stream that says nothing for so long has nothing more.
const AFTER_END: Duration = Duration::from_secs(3);

/// Why the session should not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The detach keys were typed.
    Leave,
    /// Standard output or error cannot be written.
    OutputFailed(io::ErrorKind),
}

/// The streams of one session.
#[derive(Debug)]
pub(super) struct Streams {
    stdin: Option<WriteHalf<Stream>>,
    outputs: Vec<(Which, ReadHalf<Stream>)>,
    copies: Vec<JoinHandle<io::Result<()>>>,
    input: Option<JoinHandle<()>>,
    stop: (mpsc::Sender<Stop>, mpsc::Receiver<Stop>),
    ended: watch::Sender<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Out,
    Err,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            stdin: None,
            outputs: Vec::new(),
            copies: Vec::new(),
            input: None,
            stop: mpsc::channel(4),
            ended: watch::Sender::new(false),
        }
    }
}

impl Streams {
    /// Opens the streams that the session has.
    pub(super) async fn open(
        &mut self,
        connection: &Connection,
        exec: u32,
        spec: &ExecSpec,
    ) -> Result<(), String> {
        let stream =
            async |which| open(connection, &Open::Stdio { exec, which: number(which) }).await;
        if spec.tty.is_some() {
            let (output, input) = split(stream(Stdio::Tty).await?);
            self.stdin = Some(input);
            self.outputs.push((Which::Out, output));
            return Ok(());
        }
        if spec.stdin {
            let (_, input) = split(stream(Stdio::Stdin).await?);
            self.stdin = Some(input);
        }
        for (which, stdio) in [(Which::Out, Stdio::Stdout), (Which::Err, Stdio::Stderr)] {
            let mut whole = stream(stdio).await?;
            // Nothing goes that way.
            let _ended = whole.shutdown().await;
            let (output, _) = split(whole);
            self.outputs.push((which, output));
        }
        Ok(())
    }

    /// Connects them with ours.
    pub(super) fn start(
        &mut self,
        input: Option<Input>,
        stdout: Output,
        stderr: Option<Output>,
        scanner: Scanner,
    ) {
        let mut outputs = [Some(stdout), stderr];
        for (which, stream) in self.outputs.drain(..) {
            let output = match which {
                Which::Out => outputs[0].take(),
                Which::Err => outputs[1].take(),
            };
            if let Some(output) = output {
                let copy = bring_out(stream, output, self.stop.0.clone(), self.ended.subscribe());
                self.copies.push(tokio::spawn(copy));
            }
        }
        if let (Some(input), Some(stream)) = (input, self.stdin.take()) {
            self.input = Some(tokio::spawn(bring_in(input, stream, scanner, self.stop.0.clone())));
        }
    }

    /// Waits for a reason to end the session from our side. Cancel safe.
    pub(super) async fn stopped(&mut self) -> Stop {
        match self.stop.1.recv().await {
            Some(stop) => stop,
            None => std::future::pending().await,
        }
    }

    /// Waits until everything that the session said is written.
    pub(super) async fn drain(&mut self) -> io::Result<()> {
        self.ended.send_replace(true);
        let mut result = Ok(());
        for copy in self.copies.drain(..) {
            let copied = copy.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            result = result.and(copied);
        }
        result
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for copy in &self.copies {
            copy.abort();
        }
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

fn number(which: Stdio) -> u8 {
    match which {
        Stdio::Stdin => 0,
        Stdio::Stdout => 1,
        Stdio::Stderr => 2,
        Stdio::Tty => 3,
    }
}

/// Copies what the session says until it says no more.
async fn bring_out(
    mut stream: impl AsyncRead + Unpin,
    output: Output,
    stop: mpsc::Sender<Stop>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let over = *ended.borrow();
        let length = tokio::select! {
            read = timeout_if(over, stream.read(&mut piece)) => match read {
                // A broken stream is told where the session's events are read.
                Some(Ok(length)) => length,
                Some(Err(_)) | None => 0,
            },
            // Reading is cancel safe; from now on it has an end.
            changed = ended.changed(), if !over => match changed {
                Ok(()) => continue,
                Err(_) => 0,
            },
        };
        if length == 0 || !output.write(piece[..length].to_vec()).await {
            break;
        }
    }
    let finished = output.finish().await;
    if let Err(error) = &finished {
        let _unheard = stop.send(Stop::OutputFailed(error.kind())).await;
    }
    finished
}

async fn timeout_if<T>(limited: bool, future: impl Future<Output = T>) -> Option<T> {
    if limited { timeout(AFTER_END, future).await.ok() } else { Some(future.await) }
}

/// Copies what is typed or piped in until its end, which is the process's end of file. Never returns: letting go of the
/// stream would reset it, and a reset overtakes the bytes before it.
async fn bring_in(
    input: Input,
    mut stream: impl AsyncWrite + Unpin,
    scanner: Scanner,
    stop: mpsc::Sender<Stop>,
) {
    // An error says that the process does not read any more: that is not our end.
    let _unread = copy_in(input, &mut stream, scanner, stop).await;
    std::future::pending::<()>().await;
}

async fn copy_in(
    mut input: Input,
    stream: &mut (impl AsyncWrite + Unpin),
    mut scanner: Scanner,
    stop: mpsc::Sender<Stop>,
) -> io::Result<()> {
    while let Some(piece) = input.recv().await {
        let scanned = scanner.scan(&piece);
        stream.write_all(&scanned.pass).await?;
        stream.flush().await?;
        if scanned.leave {
            let _unheard = stop.send(Stop::Leave).await;
            return Ok(());
        }
    }
    stream.write_all(&scanner.rest()).await?;
    stream.shutdown().await
}
