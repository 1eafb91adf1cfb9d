//! Requests to the host and its answers to the kernel, by one thread that waits for both.
//!
//! One thread, because both ways are one trip: a program waits for the answer to its request, and each change of threads
//! costs an emulated guest as much as the message. For the same reason the thread does not sleep at once when there is
//! nothing to do: after an answer the next request mostly comes within microseconds, and after a request its answer.
//! So long as it looks again it gives the processor to everybody else who wants it. That is of use only while there is
//! time to spare: on a busy host the emulated processor has then used up its share when the answer comes, and waits for
//! milliseconds to go on, where one that slept would be let in at once. The looks tell: they take too long.
//!
//! It never waits for the port to take a message while answers may be waiting: the host may not read before it has got
//! rid of them. While a request is on its way out, no other is taken from the kernel.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use hutch_wire::workspace::{Ahead, CODE_AHEAD, CODE_BULK, CODE_EVENT, Event};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::thread::sched_yield;

use super::ahead::Told;
use super::bulk::{Buffer, Bulk};
use super::device::{Device, REQUEST_BUFFER};
use super::local;
use super::port::{REPLY_HEADER_LEN, Replies, Reply, Requests};
use crate::log;

/// How often it looks again before it sleeps. On one processor never: nobody else could do anything meanwhile.
const LOOKS: u32 = 48;

/// So long no number of looks takes unless somebody else has the processor, in the guest or on the host.
const BUSY: Duration = Duration::from_millis(2);
/// How often it then sleeps at once.
const SLEEPS: u32 = 256;
/// Bytes of forgotten nodes that wait for the next request.
const FORGOTTEN_MAX: usize = 4096;

/// What one look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Something,
    Nothing,
    /// The file system is unmounted.
    End,
}

/// The thread's work.
#[derive(Debug)]
pub(super) struct Pump {
    device: Arc<Device>,
    requests: Arc<Requests>,
    replies: Replies,
    bulk: Bulk,
    notify: Sender<Vec<u8>>,
    tell: Sender<Event>,
    told: Told,
    /// What the kernel forgets: told with the next request, since nobody waits for it.
    forgotten: Vec<u8>,
    looks: u32,
    /// How often it sleeps at once from here on.
    sleeps: u32,
}

impl Pump {
    pub(super) fn new(
        device: Arc<Device>,
        requests: Arc<Requests>,
        replies: Replies,
        bulk: Bulk,
        notify: Sender<Vec<u8>>,
        tell: Sender<Event>,
        told: Told,
    ) -> Self {
        let alone = std::thread::available_parallelism().is_ok_and(|count| count.get() == 1);
        let looks = if alone { 0 } else { LOOKS };
        Self {
            device,
            requests,
            replies,
            bulk,
            notify,
            tell,
            told,
            forgotten: Vec::new(),
            looks,
            sleeps: 0,
        }
    }

    /// Passes messages until the file system is unmounted or the port fails.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut buffer = Buffer::for_requests(REQUEST_BUFFER);
        let mut looked = 0;
        let mut since = Instant::now();
        loop {
            let answer = self.pass_reply()?;
            let request = self.pass_request(buffer.get())?;
            match (answer, request) {
                (Look::End, _) | (_, Look::End) => return Ok(()),
                (Look::Nothing, Look::Nothing) if looked >= self.looks || self.sleeps > 0 => {
                    self.note_looks(looked, since);
                    looked = 0;
                    self.sleeps = self.sleeps.saturating_sub(1);
                    self.send_forgotten()?;
                    if self.wait()? == Look::End {
                        return Ok(());
                    }
                }
                (Look::Nothing, Look::Nothing) => {
                    if looked == 0 {
                        since = Instant::now();
                    }
                    looked += 1;
                    sched_yield();
                }
                _ => {
                    self.note_looks(looked, since);
                    looked = 0;
                }
            }
        }
    }

    /// Looks that took too long are not repeated for a while.
    fn note_looks(&mut self, looked: u32, since: Instant) {
        if looked > 0 && since.elapsed() > BUSY {
            self.sleeps = SLEEPS;
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> io::Result<Look> {
        let (of_port, of_device) = if self.requests.is_clear() {
            (PollFlags::IN, PollFlags::IN)
        } else {
            (PollFlags::IN | PollFlags::OUT, PollFlags::empty())
        };
        let mut wanted = [
            PollFd::new(self.requests.port(), of_port),
            PollFd::new(self.device.descriptor(), of_device),
        ];
        match poll(&mut wanted, None) {
            // Unmounted, while the host still owed answers.
            Ok(_) if wanted[1].revents().contains(PollFlags::ERR) => Ok(Look::End),
            Ok(_) | Err(Errno::INTR) => Ok(Look::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Kernel to host.
    fn pass_request(&mut self, buffer: &mut [u8]) -> io::Result<Look> {
        let left = self.requests.left();
        if left > 0 {
            let moved = self.requests.flush()? < left;
            return Ok(if moved { Look::Something } else { Look::Nothing });
        }
        match self.bulk.receive(&self.device, buffer) {
            Ok(0) => Ok(Look::End),
            Ok(len) => {
                let request = buffer.get(..len).unwrap_or_default();
                let known = match local::answer(request) {
                    Some(answer) => Some(answer.to_vec()),
                    None => self.told.answer(request),
                };
                match known {
                    // Who asked may have been killed.
                    Some(answer) => drop(self.device.write(&answer)),
                    None if local::is_forget(request) => {
                        self.forgotten.extend_from_slice(request);
                        if self.forgotten.len() >= FORGOTTEN_MAX {
                            self.send_forgotten()?;
                        }
                    }
                    None if self.forgotten.is_empty() => self.requests.send(request)?,
                    None => {
                        self.forgotten.extend_from_slice(request);
                        self.send_forgotten()?;
                    }
                }
                Ok(Look::Something)
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => Ok(Look::Nothing),
                Some(Errno::NODEV) => Ok(Look::End),
                // The kernel took the request back; there will be others.
                Some(Errno::INTR | Errno::NOENT) => Ok(Look::Something),
                _ => Err(error),
            },
        }
    }

    fn send_forgotten(&mut self) -> io::Result<()> {
        if !self.forgotten.is_empty() {
            self.requests.send(&self.forgotten)?;
            self.forgotten.clear();
        }
        Ok(())
    }

    /// Host to kernel.
    fn pass_reply(&mut self) -> io::Result<Look> {
        let Some(Reply { code, unique, message }) = self.replies.receive()? else {
            return Ok(Look::Nothing);
        };
        if unique != 0 {
            let told = match self.bulk.take_back(unique) {
                Some(place) if code == CODE_BULK => self.bulk.answer(&self.device, message, place),
                _ => self.device.write(message),
            };
            match told {
                // The program that asked has been killed.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NODEV) => return Ok(Look::End),
                Err(error) => log::warn(format!("the kernel refused an answer: {error}")),
            }
        } else if code == CODE_EVENT {
            let body = message.get(REPLY_HEADER_LEN..).unwrap_or_default();
            if let Ok(event) = Event::decode(body) {
                self.tell.send(event).ok();
            }
        } else if code == CODE_AHEAD {
            let body = message.get(REPLY_HEADER_LEN..).unwrap_or_default();
            if let Ok(ahead) = Ahead::decode(body) {
                self.told.tell(ahead);
            }
        } else {
            self.told.notice(code, message);
            self.notify.send(message.to_vec()).ok();
        }
        Ok(Look::Something)
    }
}
