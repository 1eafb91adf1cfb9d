//! What the multiplexer knows of one stream: two directions that end each on its own.
//!
//! ```text
//!   sending     Open ──end──▶ Ending ──all sent──▶ Ended        a dropped stream that ended still sends what it has,
//!     ├─drop──▶ Parting ─────────┐                             then tells the peer to stop
//!     └─reset, by us or the peer─▶ Resetting ──sent──▶ Done
//!   receiving   Open ──End──▶ Ended
//!     └─Reset─▶ Reset
//! ```
//!
//! The stream is forgotten when its user let go of it, our final frame (end or reset) was sent and the peer's final
//! frame came. So a peer owes each stream a final frame, and data on a forgotten stream breaks the protocol.

use std::collections::VecDeque;

/// Buffers above this are given back when they run empty: idle streams hold next to nothing.
const KEPT_CAPACITY: usize = 16 * 1024;

/// Our direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// We may write.
    Open,
    /// We said that we end; bytes or the end frame are still to be sent.
    Ending,
    /// The end frame was sent.
    Ended,
    /// The user let go without an end: what the peer allows now is sent, then the reset.
    Parting,
    /// A reset frame has to be sent, nothing else.
    Resetting,
    /// The reset frame was sent.
    Done,
}

/// The peer's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Data may come.
    Open,
    /// The peer ended it.
    Ended,
    /// The peer reset the stream.
    Reset,
}

/// One stream.
#[derive(Debug)]
pub(super) struct StreamState {
    /// Request that was not sent yet.
    pub(super) open_due: Option<Vec<u8>>,
    pub(super) sending: Sending,
    /// Written and not sent; bounded by the send buffer.
    pub(super) unsent: VecDeque<u8>,
    /// Bytes that the peer allows us to send.
    pub(super) credit: u32,
    /// The last write took less than it was given.
    pub(super) writer_waits: bool,
    /// A reset to be sent, after the end frame where one is due.
    pub(super) reset_due: Option<String>,
    pub(super) receiving: Receiving,
    /// Received and not read; bounded by the window.
    pub(super) received: VecDeque<u8>,
    /// Bytes that we allow the peer to send.
    pub(super) allowed: u32,
    /// Bytes read whose credit was not yet given back.
    pub(super) consumed: u32,
    pub(super) window_due: bool,
    /// The peer ended its direction before it reset the stream: reading ends as if it had not.
    pub(super) ended_before_reset: bool,
    /// Why the peer reset it.
    pub(super) peer_reset: Option<String>,
    /// Somebody on our side still holds it.
    pub(super) held: bool,
    /// Refused because of the stream limit.
    pub(super) refused: bool,
    pub(super) queued_control: bool,
    pub(super) queued_data: bool,
}

impl StreamState {
    pub(super) fn new(credit: u32, allowed: u32) -> Self {
        Self {
            open_due: None,
            sending: Sending::Open,
            unsent: VecDeque::new(),
            credit,
            writer_waits: false,
            reset_due: None,
            receiving: Receiving::Open,
            received: VecDeque::new(),
            allowed,
            consumed: 0,
            window_due: false,
            ended_before_reset: false,
            peer_reset: None,
            held: true,
            refused: false,
            queued_control: false,
            queued_data: false,
        }
    }

    /// Nothing of it is left to do, on either side.
    pub(super) fn is_over(&self) -> bool {
        !self.held
            && !self.queued_control
            && !self.queued_data
            && matches!(self.sending, Sending::Ended | Sending::Done)
            && self.receiving != Receiving::Open
    }

    /// A data frame or the end frame can be sent.
    pub(super) fn has_data_to_send(&self) -> bool {
        match self.sending {
            Sending::Open | Sending::Parting => !self.unsent.is_empty() && self.credit > 0,
            Sending::Ending => self.unsent.is_empty() || self.credit > 0,
            Sending::Ended | Sending::Resetting | Sending::Done => false,
        }
    }

    /// A control frame can be sent.
    pub(super) fn has_control_to_send(&self) -> bool {
        self.open_due.is_some()
            || self.window_due
            || (self.reset_due.is_some() && !self.must_send_first())
    }

    /// Counts bytes that were taken; from half a window on they are worth telling the peer.
    pub(super) fn consume(&mut self, count: usize, window: u32) {
        // What was received and not told is never more than the window.
        self.consumed += u32::try_from(count).unwrap_or(window);
        self.window_due |= self.consumed >= window.div_ceil(2);
    }

    /// Data is due before a reset.
    pub(super) fn must_send_first(&self) -> bool {
        matches!(self.sending, Sending::Ending | Sending::Parting)
    }

    /// Gives everything up at once: what was not sent and what was not read.
    pub(super) fn give_up(&mut self, reason: &str) {
        self.drop_received();
        match self.sending {
            Sending::Open | Sending::Ending | Sending::Parting => {
                self.unsent = VecDeque::new();
                self.sending = Sending::Resetting;
                self.reset_due = Some(reason.to_owned());
            }
            Sending::Ended if self.receiving == Receiving::Open => {
                self.reset_due = Some(reason.to_owned());
            }
            Sending::Ended | Sending::Resetting | Sending::Done => {}
        }
    }

    /// The user let go: what was ended is still sent whole, what was not is sent as far as the peer allows by now.
    pub(super) fn let_go(&mut self, window: u32) {
        match self.sending {
            Sending::Open if !self.unsent.is_empty() && self.credit > 0 => {
                self.drop_received();
                self.unsent.truncate(self.credit as usize);
                self.sending = Sending::Parting;
                self.reset_due = Some(String::new());
            }
            Sending::Ending if self.receiving == Receiving::Open => {
                // Until we can say that we no longer read, what comes is taken and forgotten: if both sides let go
                // like this and neither took anything, neither would ever get its end across.
                let unread = self.received.len();
                self.received = VecDeque::new();
                self.consume(unread, window);
                self.reset_due = Some(String::new());
            }
            Sending::Ending => self.drop_received(),
            _ => self.give_up(""),
        }
    }

    /// The peer reset the stream. What it sent before stays readable.
    pub(super) fn reset_by_peer(&mut self, reason: String) {
        self.ended_before_reset = self.receiving == Receiving::Ended;
        self.receiving = Receiving::Reset;
        self.window_due = false;
        self.peer_reset = Some(reason);
        self.unsent = VecDeque::new();
        if matches!(self.sending, Sending::Open | Sending::Ending | Sending::Parting) {
            // The answer: from here on nothing of ours comes.
            self.sending = Sending::Resetting;
            self.reset_due.get_or_insert_default();
        }
    }

    fn drop_received(&mut self) {
        self.received = VecDeque::new();
        self.consumed = 0;
        self.window_due = false;
    }
}

/// Gives a large buffer back when it is empty.
pub(super) fn shrink(buffer: &mut VecDeque<u8>) {
    if buffer.is_empty() && buffer.capacity() > KEPT_CAPACITY {
        *buffer = VecDeque::new();
    }
}

/// The first `max` bytes of the buffer, in the one or two pieces that they are kept in.
pub(super) fn front(buffer: &VecDeque<u8>, max: usize) -> (&[u8], &[u8]) {
    let (first, second) = buffer.as_slices();
    let head = first.len().min(max);
    (&first[..head], &second[..second.len().min(max - head)])
}
