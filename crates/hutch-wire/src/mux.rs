//! The multiplexer as a pure state machine: bytes and commands in, bytes and events out.
//!
//! [`crate::connection`] owns one behind a lock and does the I/O. Everything that waits to be sent is a mark or a
//! buffer of its stream, and each stream is in each of the two queues at most once; so a peer that sends and never
//! reads cannot make the output grow beyond what the stream table holds. Its worst case is [`Limits::streams`] times
//! (window + send buffer + open payload), and twice as many entries without buffers for streams that were refused.
//!
//! Control frames go first: they are small and let the peer go on. Data then goes round: each stream that has some may
//! send one quantum.

mod half;

use std::collections::{HashMap, VecDeque};

use crate::frame::{Decoder, Frame, HEADER, Hello, Piece, Violation, cut, encode_data_header};
use crate::{Limits, Role};
use half::{Receiving, Sending, StreamState, front, shrink};

/// Bytes that one stream holds for sending.
pub const SEND_BUFFER: usize = 128 * 1024;
/// Bytes of output that are prepared at once.
const BATCH: usize = 64 * 1024;
/// Most that one stream sends before it is another's turn.
const QUANTUM: usize = 32 * 1024;
/// Frame kinds, for naming them in violations.
const DATA: u8 = 2;
const END: u8 = 3;
const RESET: u8 = 4;
const WINDOW: u8 = 5;

/// Something that the owner of the multiplexer has to tell the users of streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream; it has to be held or [released](Mux::release).
    Opened { stream: u32, payload: Vec<u8> },
    /// There is something to read, or the end.
    Readable(u32),
    /// A write that found no room finds some now.
    Writable(u32),
    /// The peer reset the stream.
    Reset(u32),
    /// The peer ends the connection; nothing more will come.
    Bye(String),
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Blocked,
    /// The peer ended its direction.
    End,
}

/// Why a stream cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// The peer reset it.
    Reset,
    /// We ended our direction.
    Ended,
}

/// One side of a multiplexed connection after the greeting.
#[derive(Debug)]
pub struct Mux {
    limits: Limits,
    peer: Hello,
    decoder: Decoder,
    streams: HashMap<u32, StreamState>,
    /// Entries of `streams` that only wait for the peer to learn that they were refused.
    refused: usize,
    /// Number of the next stream that we open; `None` when they are used up.
    next_own: Option<u32>,
    /// Number of the next stream that the peer may open.
    next_peer: Option<u32>,
    role: Role,
    /// Streams with a control frame to send, in order of need.
    control: VecDeque<u32>,
    /// Streams with data to send, in turn.
    data: VecDeque<u32>,
}

impl Mux {
    /// The state after both greetings.
    #[must_use]
    pub fn new(role: Role, limits: Limits, peer: Hello) -> Self {
        let (own, other) = match role {
            Role::Client => (1, 2),
            Role::Server => (2, 1),
        };
        Self {
            limits,
            peer,
            decoder: Decoder::new(limits),
            streams: HashMap::new(),
            refused: 0,
            next_own: Some(own),
            next_peer: Some(other),
            role,
            control: VecDeque::new(),
            data: VecDeque::new(),
        }
    }

    /// Opens a stream and gives its number; an error names the limit that it would break.
    pub fn open(&mut self, payload: &[u8]) -> Result<u32, &'static str> {
        if payload.len() > self.limits.open_payload.min(self.peer.open_payload as usize) {
            return Err("the open request is too large");
        }
        if self.in_use() >= self.limits.streams.min(self.peer.streams as usize) {
            return Err("too many streams are open");
        }
        let Some(stream) = self.next_own else {
            return Err("stream numbers are used up");
        };
        self.next_own = stream.checked_add(2);
        let mut state = StreamState::new(self.peer.stream_window, self.limits.stream_window);
        state.open_due = Some(payload.to_vec());
        self.streams.insert(stream, state);
        self.schedule(stream);
        Ok(stream)
    }

    /// Takes bytes to send, as many as there is room for; 0 = [`Event::Writable`] will come.
    pub fn write(&mut self, stream: u32, bytes: &[u8]) -> Result<usize, StreamError> {
        let state = self.streams.get_mut(&stream).ok_or(StreamError::Ended)?;
        if state.peer_reset.is_some() {
            return Err(StreamError::Reset);
        }
        if state.sending != Sending::Open {
            return Err(StreamError::Ended);
        }
        let taken = bytes.len().min(SEND_BUFFER.saturating_sub(state.unsent.len()));
        state.unsent.extend(&bytes[..taken]);
        state.writer_waits = taken == 0 && !bytes.is_empty();
        self.schedule(stream);
        Ok(taken)
    }

    /// Ends our direction after what was written.
    pub fn end(&mut self, stream: u32) {
        if let Some(state) = self.streams.get_mut(&stream) {
            if state.sending == Sending::Open {
                state.sending = Sending::Ending;
            }
            self.schedule(stream);
        }
    }

    /// Hands up to `max` received bytes to `sink`, in one or two pieces.
    pub fn read(
        &mut self,
        stream: u32,
        max: usize,
        mut sink: impl FnMut(&[u8]),
    ) -> Result<Read, StreamError> {
        let window = self.limits.stream_window;
        let state = self.streams.get_mut(&stream).ok_or(StreamError::Reset)?;
        if state.received.is_empty() {
            return match state.receiving {
                Receiving::Open => Ok(Read::Blocked),
                Receiving::Ended => Ok(Read::End),
                Receiving::Reset if state.ended_before_reset => Ok(Read::End),
                Receiving::Reset => Err(StreamError::Reset),
            };
        }
        let (first, second) = front(&state.received, max);
        let count = first.len() + second.len();
        sink(first);
        if !second.is_empty() {
            sink(second);
        }
        state.received.drain(..count);
        shrink(&mut state.received);
        if state.receiving == Receiving::Open {
            state.consume(count, window);
            self.schedule(stream);
        }
        Ok(Read::Bytes(count))
    }

    /// Why the peer reset the stream, if it did.
    #[must_use]
    pub fn reset_reason(&self, stream: u32) -> Option<&str> {
        self.streams.get(&stream)?.peer_reset.as_deref()
    }

    /// Gives the stream up at once, with a reason for the peer, and lets go of it.
    pub fn reset(&mut self, stream: u32, reason: &str) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.held = false;
            state.give_up(cut(reason));
            self.schedule(stream);
        }
    }

    /// Lets go of the stream: a direction that we ended is still sent whole; one that we did not is sent as far as the
    /// peer allows by now, then reset.
    pub fn release(&mut self, stream: u32) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.held = false;
            state.let_go(self.limits.stream_window);
            self.schedule(stream);
        }
    }

    /// Takes bytes from the transport.
    pub fn receive(&mut self, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Violation> {
        while let Some(piece) = self.decoder.next(&mut bytes)? {
            match piece {
                Piece::Open { stream, payload } => self.opened(stream, payload, events)?,
                Piece::DataStart { stream, length } => self.data_start(stream, length)?,
                Piece::Data { stream, bytes } => self.data(stream, bytes, events),
                Piece::End { stream } => self.ended(stream, events)?,
                Piece::Reset { stream, reason } => self.reset_by_peer(stream, reason, events)?,
                Piece::Window { stream, increment } => self.window(stream, increment)?,
                Piece::Bye { reason } => {
                    events.push(Event::Bye(reason));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Appends frames to send, a batch of them at most; nothing = there is nothing to send now.
    pub fn transmit(&mut self, out: &mut Vec<u8>, events: &mut Vec<Event>) {
        while out.len() < BATCH {
            let Some(stream) = self.control.pop_front() else { break };
            self.send_control(stream, out);
        }
        while out.len() + HEADER < BATCH {
            let Some(stream) = self.data.pop_front() else { break };
            self.send_data(stream, out, events);
        }
    }

    /// There is something to [transmit](Self::transmit).
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.data.is_empty()
    }

    /// Everything that was written has been handed out.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.has_output() && self.streams.values().all(|state| state.unsent.is_empty())
    }

    /// Streams that count against the limit.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.streams.len() - self.refused
    }

    /// Bytes that the streams hold now.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        self.streams
            .values()
            .map(|state| {
                let open = state.open_due.as_ref().map_or(0, Vec::capacity);
                state.received.capacity() + state.unsent.capacity() + open
            })
            .sum()
    }

    fn opened(
        &mut self,
        stream: u32,
        payload: Vec<u8>,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        if self.next_peer != Some(stream) {
            return Err(Violation::OpenOrder(stream));
        }
        self.next_peer = stream.checked_add(2);
        let mut state = StreamState::new(self.peer.stream_window, self.limits.stream_window);
        if self.in_use() < self.limits.streams {
            self.streams.insert(stream, state);
            events.push(Event::Opened { stream, payload });
            return Ok(());
        }
        // A peer that counts may be over by what crossed on the way, not by more.
        if self.refused >= self.limits.streams.max(1) {
            return Err(Violation::TooManyStreams);
        }
        state.held = false;
        state.refused = true;
        state.give_up("too many streams are open");
        self.refused += 1;
        self.streams.insert(stream, state);
        self.schedule(stream);
        Ok(())
    }

    fn data_start(&mut self, stream: u32, length: u32) -> Result<(), Violation> {
        let state = match self.streams.get_mut(&stream) {
            Some(state) if state.receiving == Receiving::Open => state,
            _ => return Err(Violation::NotOpen { kind: DATA, stream }),
        };
        let credit = state.allowed;
        state.allowed =
            credit.checked_sub(length).ok_or(Violation::OverWindow { stream, length, credit })?;
        Ok(())
    }

    fn data(&mut self, stream: u32, bytes: &[u8], events: &mut Vec<Event>) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if state.held {
            state.received.extend(bytes);
            if events.last() != Some(&Event::Readable(stream)) {
                events.push(Event::Readable(stream));
            }
        } else if state.sending == Sending::Ending {
            state.consume(bytes.len(), self.limits.stream_window);
            self.schedule(stream);
        }
        // Other data without a reader was sent before the peer could know.
    }

    fn ended(&mut self, stream: u32, events: &mut Vec<Event>) -> Result<(), Violation> {
        let state = match self.streams.get_mut(&stream) {
            Some(state) if state.receiving == Receiving::Open => state,
            _ => return Err(Violation::NotOpen { kind: END, stream }),
        };
        state.receiving = Receiving::Ended;
        state.window_due = false;
        if state.held {
            events.push(Event::Readable(stream));
        }
        self.schedule(stream);
        Ok(())
    }

    fn reset_by_peer(
        &mut self,
        stream: u32,
        reason: String,
        events: &mut Vec<Event>,
    ) -> Result<(), Violation> {
        let Some(state) = self.known(RESET, stream)? else { return Ok(()) };
        if state.receiving == Receiving::Reset {
            return Err(Violation::NotOpen { kind: RESET, stream });
        }
        state.reset_by_peer(reason);
        if state.held {
            events.push(Event::Reset(stream));
        }
        self.schedule(stream);
        Ok(())
    }

    fn window(&mut self, stream: u32, increment: u32) -> Result<(), Violation> {
        let whole = self.peer.stream_window;
        let Some(state) = self.known(WINDOW, stream)? else { return Ok(()) };
        state.credit = state
            .credit
            .checked_add(increment)
            .filter(|credit| *credit <= whole)
            .ok_or(Violation::WindowOverflow(stream))?;
        self.schedule(stream);
        Ok(())
    }

    /// The stream, or nothing when it has been forgotten; frames that may cross our end are legitimate then.
    fn known(&mut self, kind: u8, stream: u32) -> Result<Option<&mut StreamState>, Violation> {
        let own = (stream % 2 == 1) == (self.role == Role::Client);
        let next = if own { self.next_own } else { self.next_peer };
        if stream == 0 || next.is_some_and(|next| stream >= next) {
            return Err(Violation::NotOpen { kind, stream });
        }
        Ok(self.streams.get_mut(&stream))
    }

    /// Puts the stream into the queues that it belongs into, or forgets it.
    fn schedule(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if !state.queued_control && state.has_control_to_send() {
            state.queued_control = true;
            self.control.push_back(stream);
        }
        if !state.queued_data && state.has_data_to_send() {
            state.queued_data = true;
            self.data.push_back(stream);
        }
        if state.is_over() {
            self.refused -= usize::from(state.refused);
            self.streams.remove(&stream);
        }
    }

    fn send_control(&mut self, stream: u32, out: &mut Vec<u8>) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.queued_control = false;
        if let Some(payload) = state.open_due.take() {
            Frame::Open { stream, payload: &payload }.encode(out);
        }
        if std::mem::take(&mut state.window_due) {
            Frame::Window { stream, increment: state.consumed }.encode(out);
            state.allowed += std::mem::take(&mut state.consumed);
        }
        if !state.must_send_first()
            && let Some(reason) = state.reset_due.take()
        {
            Frame::Reset { stream, reason: &reason }.encode(out);
            state.sending = Sending::Done;
        }
        self.schedule(stream);
    }

    fn send_data(&mut self, stream: u32, out: &mut Vec<u8>, events: &mut Vec<Event>) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.queued_data = false;
        if !state.has_data_to_send() {
            return self.schedule(stream);
        }
        let most = QUANTUM
            .min(BATCH - HEADER - out.len().min(BATCH - HEADER))
            .min(self.peer.frame_payload as usize)
            .min(state.credit as usize);
        let (first, second) = front(&state.unsent, most);
        let count = first.len() + second.len();
        if count > 0 {
            // Not more than `credit`, which has this type.
            let length = u32::try_from(count).unwrap_or(state.credit);
            encode_data_header(out, stream, length);
            out.extend_from_slice(first);
            out.extend_from_slice(second);
            state.unsent.drain(..count);
            shrink(&mut state.unsent);
            state.credit -= length;
        }
        if state.unsent.is_empty() && state.sending == Sending::Ending {
            Frame::End { stream }.encode(out);
            state.sending = Sending::Ended;
        }
        if state.unsent.is_empty() && state.sending == Sending::Parting {
            state.sending = Sending::Resetting;
        }
        // Room for a quantum, so that a writer is not woken for every small frame.
        if state.writer_waits && state.held && state.unsent.len() <= SEND_BUFFER - QUANTUM {
            state.writer_waits = false;
            events.push(Event::Writable(stream));
        }
        self.schedule(stream);
    }
}

#[cfg(test)]
mod tests;
