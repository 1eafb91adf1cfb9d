//! Sessions with a keeper that is played by the test.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use hutch_wire::guest::WindowSize;
use hutch_wire::{Incoming, Limits, Role};
use rustix::process::{Signal, getpid, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// A played keeper's end of one session.
struct Played {
    incoming: Incoming,
    _connection: Connection,
}

impl Played {
    /// The next stream that is opened, which must ask for this.
    async fn next(&mut self, what: &Open) -> Stream {
        let stream = timeout(DEADLINE, self.incoming.next()).await.unwrap().unwrap();
        assert_eq!(postcard::from_bytes::<Open>(stream.payload()).unwrap(), *what);
        stream.accept()
    }

    /// The exec stream and what is asked on it.
    async fn exec(&mut self) -> (Stream, ExecSpec) {
        let mut stream = self.next(&Open::Exec).await;
        let spec = message::read(&mut stream, MESSAGE_MAX).await.unwrap();
        (stream, spec)
    }

    async fn stdio(&mut self, exec: &Stream, which: u8) -> Stream {
        self.next(&Open::Stdio { exec: exec.id(), which }).await
    }

    /// Answers questions about the status until the connection ends.
    async fn answer_questions(mut self) {
        while let Some(stream) = self.incoming.next().await {
            let mut stream = stream.accept();
            let _asked: Request = message::read(&mut stream, 1024).await.unwrap();
            let answer = hutch_api::Response::Failed { reason: "played".to_owned() };
            message::write(&mut stream, &answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    }
}

async fn connected() -> (Keeper, Played) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = Connection::establish(theirs, Role::Server, Limits::default());
    let (keeper, played) = tokio::join!(Keeper::greet(ours), theirs);
    let (connection, incoming) = played.unwrap();
    (keeper.unwrap(), Played { incoming, _connection: connection })
}

/// The other ends of a session's standard streams.
struct Outside {
    stdin: Option<File>,
    stdout: File,
    stderr: File,
}

impl Outside {
    /// Everything that was written, on a thread that does not hold up the session.
    async fn output(self) -> (Vec<u8>, Vec<u8>) {
        let Self { stdin, stdout, stderr } = self;
        let all = |mut stream: File| {
            tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                bytes
            })
        };
        let (stdout, stderr) = tokio::join!(all(stdout), all(stderr));
        drop(stdin);
        (stdout.unwrap(), stderr.unwrap())
    }
}

fn pipes() -> (Standard, Outside) {
    let (stdin, to_stdin) = io::pipe().unwrap();
    let (from_stdout, stdout) = io::pipe().unwrap();
    let (from_stderr, stderr) = io::pipe().unwrap();
    let file = |descriptor: OwnedFd| File::from(descriptor);
    (
        Standard { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() },
        Outside {
            stdin: Some(file(to_stdin.into())),
            stdout: file(from_stdout.into()),
            stderr: file(from_stderr.into()),
        },
    )
}

/// A terminal, and standard streams that are all on it.
fn on_a_terminal() -> (File, OwnedFd, Standard) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = openpt(flags).unwrap();
    grantpt(&outer).unwrap();
    unlockpt(&outer).unwrap();
    let inner = ioctl_tiocgptpeer(&outer, flags).unwrap();
    tcsetwinsize(&inner, Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let again = || inner.try_clone().unwrap();
    let standard = Standard { stdin: again(), stdout: again(), stderr: again() };
    (File::from(outer), inner, standard)
}

fn is_raw(terminal: &OwnedFd) -> bool {
    !tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ICANON)
}

fn plan(argv: &[&str]) -> Plan {
    let argv = argv.iter().map(|&word| hutch_wire::guest::Bytes::from(word.as_bytes().to_vec()));
    Plan {
        spec: ExecSpec {
            argv: argv.collect(),
            environment: Vec::new(),
            directory: None,
            user: None,
            tty: None,
            stdin: false,
            privileged: false,
            detached: false,
            seeds: Vec::new(),
        },
        input: false,
        detach_keys: vec![16, 17],
        plugin_socket: None,
    }
}

fn terminal_plan() -> Plan {
    let mut plan = plan(&["sh"]);
    plan.spec.tty = Some(WindowSize { rows: 33, columns: 101 });
    plan.input = true;
    plan
}

async fn ends(session: impl Future<Output = Result<End, Failure>>) -> End {
    timeout(DEADLINE, session).await.unwrap().unwrap()
}

async fn started(exec: &mut Stream) {
    message::write(exec, &ExecEvent::Started { pid: 1 }).await.unwrap();
}

async fn ended(mut exec: Stream, event: ExecEvent) {
    message::write(&mut exec, &event).await.unwrap();
    exec.shutdown().await.unwrap();
    // Whoever reads the end also ends its side.
    let mut rest = Vec::new();
    let _end = exec.read_to_end(&mut rest).await;
}

#[tokio::test]
async fn output_comes_on_its_own_stream_and_the_code_is_passed() {
    let (keeper, mut played) = connected().await;
    let (standard, outside) = pipes();
    let guest = async {
        let (mut exec, spec) = played.exec().await;
        assert_eq!(spec.argv[0].as_slice(), b"cmd");
        let (mut out, mut err) = (played.stdio(&exec, 1).await, played.stdio(&exec, 2).await);
        started(&mut exec).await;
        out.write_all(b"out\n").await.unwrap();
        err.write_all(b"err\n").await.unwrap();
        out.shutdown().await.unwrap();
        err.shutdown().await.unwrap();
        ended(exec, ExecEvent::Exited { code: 7 }).await;
    };
    let session = ends(run(&keeper, plan(&["cmd"]), standard));
    let (end, (), output) = tokio::join!(session, guest, outside.output());
    assert_eq!(end, End::Code(7));
    assert_eq!(output, (b"out\n".to_vec(), b"err\n".to_vec()));
}

#[tokio::test]
async fn a_megabyte_passes_both_ways_unchanged_and_ends() {
    let (keeper, mut played) = connected().await;
    let (standard, mut outside) = pipes();
    let bytes: Vec<u8> =
        (0..1_048_576_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let mut stdin = outside.stdin.take().unwrap();
    let sent = bytes.clone();
    let typing = tokio::task::spawn_blocking(move || stdin.write_all(&sent).unwrap());
    let guest = async {
        let (mut exec, spec) = played.exec().await;
        assert!(spec.stdin);
        let mut input = played.stdio(&exec, 0).await;
        let (mut out, _err) = (played.stdio(&exec, 1).await, played.stdio(&exec, 2).await);
        started(&mut exec).await;
        // Until the half-close, which must not take anything with it.
        tokio::io::copy(&mut input, &mut out).await.unwrap();
        out.shutdown().await.unwrap();
        drop(_err);
        ended(exec, ExecEvent::Exited { code: 0 }).await;
    };
    let mut plan = plan(&["cat"]);
    plan.spec.stdin = true;
    let session = ends(run(&keeper, plan, standard));
    let (end, (), output) = tokio::join!(session, guest, outside.output());
    typing.await.unwrap();
    assert_eq!(end, End::Code(0));
    assert!(output.0 == bytes, "{} bytes came back", output.0.len());
}

#[tokio::test]
async fn what_cannot_run_has_the_codes_of_shells() {
    for (kind, code) in [
        (ExecFailure::NotFound, 127),
        (ExecFailure::NotExecutable, 126),
        (ExecFailure::Invalid, 126),
        (ExecFailure::Refused, 125),
    ] {
        let (keeper, mut played) = connected().await;
        let (standard, outside) = pipes();
        let guest = async {
            let (exec, _) = played.exec().await;
            drop((played.stdio(&exec, 1).await, played.stdio(&exec, 2).await));
            ended(exec, ExecEvent::Failed { kind, message: "no \u{1b}[31mred".to_owned() }).await;
        };
        let session = ends(run(&keeper, plan(&["x"]), standard));
        let (end, (), _) = tokio::join!(session, guest, outside.output());
        let failure = end.code().unwrap_err();
        assert_eq!(failure.code(true), code);
        assert_eq!(failure.to_string(), "no \\x1b[31mred");
    }
}

#[tokio::test]
async fn a_signal_that_ended_the_process_is_in_the_code() {
    let (keeper, mut played) = connected().await;
    let (standard, outside) = pipes();
    let guest = async {
        let (mut exec, _) = played.exec().await;
        drop((played.stdio(&exec, 1).await, played.stdio(&exec, 2).await));
        started(&mut exec).await;
        ended(exec, ExecEvent::Signaled { signal: 9 }).await;
    };
    let (end, (), _) =
        tokio::join!(ends(run(&keeper, plan(&["x"]), standard)), guest, outside.output());
    assert_eq!(end, End::Code(137));
}

#[tokio::test]
async fn signals_are_passed_on_and_the_fourth_ends_us() {
    let (keeper, mut played) = connected().await;
    let (standard, outside) = pipes();
    let guest = async {
        let (mut exec, _) = played.exec().await;
        let _streams = (played.stdio(&exec, 1).await, played.stdio(&exec, 2).await);
        started(&mut exec).await;
        for signal in [Signal::INT, Signal::USR1, Signal::TERM, Signal::HUP] {
            kill_process(getpid(), signal).unwrap();
            let request: ExecRequest = message::read(&mut exec, 64).await.unwrap();
            let number = u8::try_from(signal.as_raw()).unwrap();
            assert_eq!(request, ExecRequest::Signal(number));
        }
        kill_process(getpid(), Signal::TERM).unwrap();
        // The session is gone: so is its stream.
        assert!(message::read::<ExecRequest, _>(&mut exec, 64).await.is_err());
    };
    let (end, (), _) =
        tokio::join!(ends(run(&keeper, plan(&["x"]), standard)), guest, outside.output());
    assert_eq!(end, End::Interrupted(15));
    assert_eq!(end.code().unwrap_err().code(true), 143);
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_session_silently() {
    let (keeper, mut played) = connected().await;
    let (standard, outside) = pipes();
    let Outside { stdout, stderr, .. } = outside;
    drop(stdout);
    let guest = async {
        let (mut exec, _) = played.exec().await;
        let (mut out, _err) = (played.stdio(&exec, 1).await, played.stdio(&exec, 2).await);
        started(&mut exec).await;
        while out.write_all(&[b'y'; 4096]).await.is_ok() {}
        assert!(message::read::<ExecRequest, _>(&mut exec, 64).await.is_err());
    };
    let (end, ()) = tokio::join!(ends(run(&keeper, plan(&["yes"]), standard)), guest);
    drop(stderr);
    assert_eq!(end, End::OutputFailed(io::ErrorKind::BrokenPipe));
    let failure = end.code().unwrap_err();
    assert_eq!(failure.code(true), exit_codes::OUTPUT_CLOSED);
}

#[tokio::test]
async fn a_terminal_is_raw_during_the_session_and_has_its_size() {
    let (keeper, mut played) = connected().await;
    let (mut outer, inner, standard) = on_a_terminal();
    let guest = async {
        let (mut exec, spec) = played.exec().await;
        assert_eq!(spec.tty, Some(WindowSize { rows: 33, columns: 101 }));
        let mut tty = played.stdio(&exec, 3).await;
        started(&mut exec).await;
        // Ctrl-C, Ctrl-Z and Ctrl-S are keys of the session.
        outer.write_all(b"\x03\x1a\x13x").unwrap();
        let mut keys = [0; 4];
        tty.read_exact(&mut keys).await.unwrap();
        assert_eq!(&keys, b"\x03\x1a\x13x");
        assert!(is_raw(&inner));
        tcsetwinsize(&inner, Winsize { ws_row: 20, ws_col: 70, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
        kill_process(getpid(), Signal::WINCH).unwrap();
        let request: ExecRequest = message::read(&mut exec, 64).await.unwrap();
        assert_eq!(request, ExecRequest::Resize(WindowSize { rows: 20, columns: 70 }));
        tty.write_all(b"bye\r\n").await.unwrap();
        tty.shutdown().await.unwrap();
        ended(exec, ExecEvent::Exited { code: 3 }).await;
    };
    let (end, ()) = tokio::join!(ends(run(&keeper, terminal_plan(), standard)), guest);
    assert_eq!(end, End::Code(3));
    assert!(!is_raw(&inner));
    let mut shown = [0; 5];
    outer.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"bye\r\n");
}

#[tokio::test]
async fn the_terminal_is_restored_on_a_signal() {
    let (keeper, mut played) = connected().await;
    let (_outer, inner, standard) = on_a_terminal();
    let guest = async {
        let (mut exec, _) = played.exec().await;
        let mut tty = played.stdio(&exec, 3).await;
        started(&mut exec).await;
        (&_outer).write_all(b"x").unwrap();
        let mut key = [0; 1];
        tty.read_exact(&mut key).await.unwrap();
        assert!(is_raw(&inner));
        kill_process(getpid(), Signal::TERM).unwrap();
        assert!(message::read::<ExecRequest, _>(&mut exec, 64).await.is_err());
    };
    let (end, ()) = tokio::join!(ends(run(&keeper, terminal_plan(), standard)), guest);
    assert_eq!(end, End::Interrupted(15));
    assert!(!is_raw(&inner));
}

#[tokio::test]
async fn the_terminal_is_restored_when_the_keeper_dies() {
    let (keeper, mut played) = connected().await;
    let (_outer, inner, standard) = on_a_terminal();
    let session = ends(run(&keeper, terminal_plan(), standard));
    let guest = async move {
        let (mut exec, _) = played.exec().await;
        let _tty = played.stdio(&exec, 3).await;
        started(&mut exec).await;
        played._connection.close();
    };
    let (end, ()) = tokio::join!(session, guest);
    assert!(matches!(end, End::Lost(_) | End::NotBegun(_)), "{end:?}");
    assert!(!is_raw(&inner));
}

#[tokio::test]
async fn the_detach_keys_leave_the_session_running() {
    let (keeper, mut played) = connected().await;
    let (mut outer, inner, standard) = on_a_terminal();
    let guest = async move {
        let (mut exec, _) = played.exec().await;
        let mut tty = played.stdio(&exec, 3).await;
        started(&mut exec).await;
        outer.write_all(b"ab\x10c\x10\x11").unwrap();
        let mut keys = [0; 4];
        tty.read_exact(&mut keys).await.unwrap();
        assert_eq!(&keys, b"ab\x10c");
        let request: ExecRequest = message::read(&mut exec, 64).await.unwrap();
        assert_eq!(request, ExecRequest::Detach);
        played.answer_questions().await;
        drop((exec, tty, outer));
    };
    let guest = tokio::spawn(guest);
    let end = ends(run(&keeper, terminal_plan(), standard)).await;
    assert_eq!(end, End::Left);
    assert_eq!(end.code().unwrap(), 0);
    assert!(!is_raw(&inner));
    drop(keeper);
    timeout(DEADLINE, guest).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_detached_session_is_left_when_it_has_begun() {
    let (keeper, mut played) = connected().await;
    let (standard, _outside) = pipes();
    let guest = tokio::spawn(async move {
        let (mut exec, spec) = played.exec().await;
        assert!(spec.detached);
        started(&mut exec).await;
        played.answer_questions().await;
    });
    let mut plan = plan(&["sleep", "1000"]);
    plan.spec.detached = true;
    assert_eq!(ends(run(&keeper, plan, standard)).await, End::Left);
    drop(keeper);
    timeout(DEADLINE, guest).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_before_anything_runs_is_told_apart() {
    let (keeper, mut played) = connected().await;
    let (standard, outside) = pipes();
    let guest = async {
        timeout(DEADLINE, played.incoming.next())
            .await
            .unwrap()
            .unwrap()
            .refuse("the sandbox is stopping");
        // Whatever else was opened meanwhile.
        timeout(Duration::from_millis(100), played.incoming.next()).await.ok();
    };
    let (end, (), _) =
        tokio::join!(ends(run(&keeper, plan(&["x"]), standard)), guest, outside.output());
    assert_eq!(end, End::NotBegun("the sandbox is stopping".to_owned()));
}
