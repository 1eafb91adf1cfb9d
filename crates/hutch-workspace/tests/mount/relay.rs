//! A stream between init and the worker on which answers are late.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hutch_workspace::abi::opcode;

/// Holds answers to listings until there are so many, or for so long; everything else passes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HoldListings {
    pub(crate) count: usize,
    pub(crate) at_most: Duration,
}

/// Passes messages between the two streams until either ends; gives the stream for init.
pub(crate) fn relay(worker: UnixStream, hold: HoldListings) -> UnixStream {
    let (ours, init) = UnixStream::pair().expect("a socket pair");
    let asked = Arc::new(Mutex::new(HashSet::new()));
    let (requests_in, requests_out) =
        (ours.try_clone().expect("a descriptor"), worker.try_clone().expect("a descriptor"));
    let note = Arc::clone(&asked);
    std::thread::spawn(move || {
        pass(requests_in, |message| {
            if u32_at(message, 4) == opcode::READDIRPLUS {
                note.lock().expect("no panic").insert(message[8..16].to_vec());
            }
            (&requests_out).write_all(message).is_ok()
        });
        requests_out.shutdown(std::net::Shutdown::Both).ok();
    });
    let (to_delay, delayed): (Sender<Vec<u8>>, Receiver<Vec<u8>>) = channel();
    let late = ours.try_clone().expect("a descriptor");
    // Whole messages of two threads must not mix.
    let turn = Arc::new(Mutex::new(()));
    let turn_of_late = Arc::clone(&turn);
    std::thread::spawn(move || {
        while let Ok(first) = delayed.recv() {
            let end = Instant::now() + hold.at_most;
            let mut held = vec![first];
            while held.len() < hold.count {
                match delayed.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Ok(next) => held.push(next),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            // Each is taken in before the next comes.
            for message in held {
                {
                    let _turn = turn_of_late.lock().expect("no panic");
                    (&late).write_all(&message).ok();
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    });
    std::thread::spawn(move || {
        pass(worker, |message| {
            if asked.lock().expect("no panic").remove(&message[8..16]) {
                return to_delay.send(message.to_vec()).is_ok();
            }
            let _turn = turn.lock().expect("no panic");
            (&ours).write_all(message).is_ok()
        });
        ours.shutdown(std::net::Shutdown::Both).ok();
    });
    init
}

fn pass(mut from: UnixStream, mut take: impl FnMut(&[u8]) -> bool) {
    let mut message = vec![0; 16];
    loop {
        message.truncate(16);
        if from.read_exact(&mut message).is_err() {
            return;
        }
        let len = u32_at(&message, 0).try_into().expect("a length");
        message.resize(len, 0);
        if from.read_exact(&mut message[16..]).is_err() || !take(&message) {
            return;
        }
    }
}

fn u32_at(message: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(message[at..at + 4].try_into().expect("four bytes"))
}
