use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn limits() -> Limits {
    Limits { frame_payload: 300, stream_window: 1000, streams: 8, open_payload: 64 }
}

fn server() -> Mux {
    Mux::new(Role::Server, limits(), Hello::ours(limits()))
}

/// One frame after the other, as a hostile client would send them.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn frame(mut self, frame: Frame<'_>) -> Self {
        frame.encode(&mut self.0);
        self
    }

    fn open(self, stream: u32) -> Self {
        self.frame(Frame::Open { stream, payload: b"" })
    }

    fn data(mut self, stream: u32, length: u32) -> Self {
        encode_data_header(&mut self.0, stream, length);
        self.0.resize(self.0.len() + length as usize, 7);
        self
    }

    fn end(self, stream: u32) -> Self {
        self.frame(Frame::End { stream })
    }

    fn reset(self, stream: u32) -> Self {
        self.frame(Frame::Reset { stream, reason: "" })
    }

    fn window(self, stream: u32, increment: u32) -> Self {
        self.frame(Frame::Window { stream, increment })
    }

    fn play(&self, mux: &mut Mux) -> Result<Vec<Event>, Violation> {
        let mut events = Vec::new();
        mux.receive(&self.0, &mut events).map(|()| events)
    }
}

fn script() -> Script {
    Script::default()
}

/// Everything that `mux` has to send.
fn output(mux: &mut Mux) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut out = Vec::new();
        mux.transmit(&mut out, &mut Vec::new());
        if out.is_empty() {
            return all;
        }
        all.extend_from_slice(&out);
    }
}

#[test]
fn what_a_peer_may_not_do_is_named() {
    let kind = |kind, stream| Violation::NotOpen { kind, stream };
    for (script, violation) in [
        (script().open(2), Violation::OpenOrder(2)),
        (script().open(3), Violation::OpenOrder(3)),
        (script().open(1).open(1), Violation::OpenOrder(1)),
        (script().data(1, 1), kind(DATA, 1)),
        (script().data(2, 1), kind(DATA, 2)),
        (script().end(1), kind(END, 1)),
        (script().reset(1), kind(RESET, 1)),
        (script().reset(2), kind(RESET, 2)),
        (script().window(1, 1), kind(WINDOW, 1)),
        (script().window(0, 1), kind(WINDOW, 0)),
        (script().open(1).end(1).data(1, 1), kind(DATA, 1)),
        (script().open(1).end(1).end(1), kind(END, 1)),
        (script().open(1).reset(1).data(1, 1), kind(DATA, 1)),
        (script().open(1).reset(1).reset(1), kind(RESET, 1)),
        (script().open(1).window(1, 1), Violation::WindowOverflow(1)),
        (script().open(1).window(1, u32::MAX), Violation::WindowOverflow(1)),
        (
            script().open(1).data(1, 300).data(1, 300).data(1, 300).data(1, 101),
            Violation::OverWindow { stream: 1, length: 101, credit: 100 },
        ),
    ] {
        let error = script.play(&mut server()).unwrap_err();
        assert_eq!(error, violation);
    }
}

#[test]
fn what_crosses_our_reset_is_tolerated_until_the_peer_answers() {
    let mut mux = server();
    script().open(1).play(&mut mux).unwrap();
    mux.reset(1, "no");
    output(&mut mux);
    assert!(script().data(1, 300).end(1).play(&mut mux).unwrap().is_empty());
    assert_eq!((mux.in_use(), mux.bytes_held()), (0, 0));
    // The answer was given; window and reset may still have been under way, data not.
    script().window(1, 5).reset(1).play(&mut mux).unwrap();
    assert!(script().data(1, 1).play(&mut mux).is_err());
}

#[test]
fn two_sides_that_end_and_let_go_with_full_windows_both_finish() {
    let mut world = World::new();
    let stream = world.muxes[0].open(b"payload").unwrap();
    world.carry(0, usize::MAX);
    for mux in &mut world.muxes {
        assert_eq!(mux.write(stream, &[1; 5000]), Ok(5000));
        mux.end(stream);
        mux.release(stream);
    }
    world.held = Default::default();
    world.settle();
    for mux in &world.muxes {
        assert_eq!((mux.streams.len(), mux.bytes_held()), (0, 0));
    }
}

#[test]
fn the_window_counts_what_was_read_and_not_what_came() {
    let mut mux = server();
    script().open(1).data(1, 300).data(1, 300).data(1, 300).data(1, 100).play(&mut mux).unwrap();
    assert!(output(&mut mux).is_empty());
    assert_eq!(mux.read(1, 499, |_| {}), Ok(Read::Bytes(499)));
    assert!(output(&mut mux).is_empty(), "less than half of the window is not worth a frame");
    assert_eq!(mux.read(1, 1, |_| {}), Ok(Read::Bytes(1)));
    let mut expected = Vec::new();
    Frame::Window { stream: 1, increment: 500 }.encode(&mut expected);
    assert_eq!(output(&mut mux), expected);
    script().data(1, 300).data(1, 200).play(&mut mux).unwrap();
    assert!(script().data(1, 1).play(&mut mux).is_err());
}

#[test]
fn data_of_a_stream_stops_at_the_peers_window_and_goes_on_after_it() {
    let mut mux = server();
    script().open(1).play(&mut mux).unwrap();
    assert_eq!(mux.write(1, &[1; 1500]), Ok(1500));
    mux.end(1);
    // Four frames of at most 300 bytes.
    assert_eq!(output(&mut mux).len(), 1000 + 4 * HEADER);
    assert!(!mux.is_drained());
    script().window(1, 1000).play(&mut mux).unwrap();
    // Two frames, and the end.
    assert_eq!(output(&mut mux).len(), 500 + 3 * HEADER);
    assert!(mux.is_drained());
}

#[test]
fn a_writer_without_room_is_woken_when_there_is_some() {
    let wide = Limits { stream_window: 1 << 20, ..Limits::default() };
    let mut mux = Mux::new(Role::Client, wide, Hello::ours(wide));
    let stream = mux.open(b"").unwrap();
    assert_eq!(mux.write(stream, &vec![1; SEND_BUFFER + 5]), Ok(SEND_BUFFER));
    assert_eq!(mux.write(stream, &[1; 5]), Ok(0));
    let mut events = Vec::new();
    mux.transmit(&mut Vec::new(), &mut events);
    assert_eq!(events, [Event::Writable(stream)]);
    assert_eq!(mux.write(stream, &[1; 5]), Ok(5));
}

#[test]
fn streams_over_the_limit_are_refused_and_a_flood_of_them_is_a_violation() {
    let mut mux = server();
    let mut stream = 1;
    let mut opened = 0;
    let violation = loop {
        match script().open(stream).play(&mut mux) {
            Ok(events) => opened += events.len(),
            Err(violation) => break violation,
        }
        stream += 2;
    };
    assert_eq!(violation, Violation::TooManyStreams);
    assert_eq!((opened, stream), (8, 1 + 2 * 16));
}

#[test]
fn a_refused_stream_makes_room_when_the_peer_ends_it() {
    let mut mux = server();
    for stream in (1..17).step_by(2) {
        script().open(stream).play(&mut mux).unwrap();
    }
    for stream in (17..2017).step_by(2) {
        script().open(stream).play(&mut mux).unwrap();
        assert!(!output(&mut mux).is_empty(), "the refusal");
        script().reset(stream).play(&mut mux).unwrap();
    }
    assert_eq!((mux.in_use(), mux.refused), (8, 0));
}

#[test]
fn a_peer_that_floods_and_never_reads_does_not_make_us_grow() {
    let mut mux = server();
    // Our user writes into every stream, reads everything at once and lets go of streams that are reset.
    let mut stream = 1;
    let ended = loop {
        let flood = script().open(stream).data(stream, 300).window(stream, 0).reset(stream);
        match flood.play(&mut mux) {
            Err(violation) => break violation,
            Ok(events) => {
                for event in events {
                    match event {
                        Event::Opened { stream, .. } => {
                            mux.write(stream, &[0; 5000]).ok();
                            mux.read(stream, 5000, |_| {}).ok();
                        }
                        Event::Reset(stream) => mux.release(stream),
                        _ => {}
                    }
                }
            }
        }
        assert!(mux.streams.len() <= 16 && mux.control.len() <= 16 && mux.data.len() <= 16);
        assert!(mux.bytes_held() <= 8 * (SEND_BUFFER + 1000 + 64));
        stream += 2;
    };
    assert_eq!(ended, Violation::TooManyStreams);
}

#[test]
fn data_of_many_streams_goes_round() {
    let wide = Limits { stream_window: 1 << 20, ..Limits::default() };
    let mut mux = Mux::new(Role::Client, wide, Hello::ours(wide));
    for _ in 0..3 {
        let stream = mux.open(b"").unwrap();
        mux.write(stream, &vec![0; 100_000]).unwrap();
    }
    let all = output(&mut mux);
    let mut input = all.as_slice();
    let mut decoder = Decoder::new(wide);
    let mut order = Vec::new();
    while let Some(piece) = decoder.next(&mut input).unwrap() {
        if let Piece::DataStart { stream, .. } = piece {
            order.push(stream);
        }
    }
    assert_eq!(order[..6], [1, 3, 5, 1, 3, 5]);
}

/// A step of the model: on which side, on which of its streams, what.
#[derive(Debug, Clone, Copy)]
enum Step {
    Open,
    Write(usize, u16),
    Read(usize, u16),
    End(usize),
    Reset(usize),
    Release(usize),
    /// Carries so many bytes from this side to the other.
    Carry(u16),
}

fn step() -> impl Strategy<Value = (bool, Step)> {
    let size = 0_u16..3000;
    let step = prop_oneof![
        2 => Just(Step::Open),
        8 => (0_usize..8, size.clone()).prop_map(|(stream, size)| Step::Write(stream, size)),
        8 => (0_usize..8, size.clone()).prop_map(|(stream, size)| Step::Read(stream, size)),
        2 => (0_usize..8).prop_map(Step::End),
        1 => (0_usize..8).prop_map(Step::Reset),
        1 => (0_usize..8).prop_map(Step::Release),
        12 => size.prop_map(Step::Carry),
    ];
    (any::<bool>(), step)
}

/// What is known of one direction of a stream, from its writer's side.
#[derive(Debug, Default)]
struct Direction {
    written: Vec<u8>,
    read: Vec<u8>,
    ended: bool,
    /// Either side gave the stream up: what arrives is a beginning of what was written.
    cut: bool,
    seen_end: bool,
}

struct World {
    muxes: [Mux; 2],
    wires: [VecDeque<u8>; 2],
    /// Streams that the side still holds.
    held: [Vec<u32>; 2],
    directions: BTreeMap<(usize, u32), Direction>,
    next_byte: u8,
}

impl World {
    fn new() -> Self {
        let mux = |role| Mux::new(role, limits(), Hello::ours(limits()));
        Self {
            muxes: [mux(Role::Client), mux(Role::Server)],
            wires: Default::default(),
            held: Default::default(),
            directions: BTreeMap::new(),
            next_byte: 0,
        }
    }

    fn pick(&self, side: usize, choice: usize) -> Option<u32> {
        let held = &self.held[side];
        held.get(choice % held.len().max(1)).copied()
    }

    fn direction(&mut self, side: usize, stream: u32) -> &mut Direction {
        self.directions.entry((side, stream)).or_default()
    }

    fn cut(&mut self, stream: u32) {
        for side in [0, 1] {
            self.direction(side, stream).cut = true;
        }
    }

    fn step(&mut self, side: usize, step: Step) {
        match step {
            Step::Open => {
                if let Ok(stream) = self.muxes[side].open(b"payload") {
                    self.held[side].push(stream);
                }
            }
            Step::Write(choice, size) => {
                let Some(stream) = self.pick(side, choice) else { return };
                let bytes: Vec<u8> = (0..size)
                    .map(|_| {
                        self.next_byte = self.next_byte.wrapping_mul(5).wrapping_add(1);
                        self.next_byte
                    })
                    .collect();
                if let Ok(taken) = self.muxes[side].write(stream, &bytes) {
                    self.direction(side, stream).written.extend_from_slice(&bytes[..taken]);
                }
            }
            Step::Read(choice, size) => {
                if let Some(stream) = self.pick(side, choice) {
                    self.read(side, stream, size.into());
                }
            }
            Step::End(choice) => {
                let Some(stream) = self.pick(side, choice) else { return };
                self.muxes[side].end(stream);
                self.direction(side, stream).ended = true;
            }
            Step::Reset(choice) => {
                let Some(stream) = self.pick(side, choice) else { return };
                self.muxes[side].reset(stream, "enough");
                self.held[side].retain(|held| *held != stream);
                self.cut(stream);
            }
            Step::Release(choice) => {
                let Some(stream) = self.pick(side, choice) else { return };
                self.muxes[side].release(stream);
                self.held[side].retain(|held| *held != stream);
                // What this side ended still arrives; what it did not end, and what comes to it, is cut.
                if !self.direction(side, stream).ended {
                    self.direction(side, stream).cut = true;
                }
                self.direction(1 - side, stream).cut = true;
            }
            Step::Carry(size) => self.carry(side, size.into()),
        }
    }

    fn read(&mut self, side: usize, stream: u32, size: usize) -> bool {
        let mut got = Vec::new();
        let read = self.muxes[side].read(stream, size.max(1), |bytes| got.extend_from_slice(bytes));
        let reason = self.muxes[side].reset_reason(stream).map(str::to_owned);
        let direction = self.direction(1 - side, stream);
        direction.read.extend_from_slice(&got);
        assert!(direction.written.starts_with(&direction.read), "stream {stream} is not intact");
        match read {
            Ok(Read::Bytes(count)) => {
                assert_eq!(count, got.len());
                true
            }
            Ok(Read::End) => {
                assert!(direction.ended && direction.read == direction.written, "an early end");
                direction.seen_end = true;
                false
            }
            Ok(Read::Blocked) => false,
            Err(_) => {
                // Both sides may reach the limit at once.
                let refused = reason.as_deref() == Some("too many streams are open");
                assert!(direction.cut || refused, "stream {stream} was reset by nobody");
                direction.cut = true;
                false
            }
        }
    }

    fn carry(&mut self, side: usize, size: usize) {
        let mut out = Vec::new();
        self.muxes[side].transmit(&mut out, &mut Vec::new());
        self.wires[side].extend(out);
        let size = size.min(self.wires[side].len());
        let bytes: Vec<u8> = self.wires[side].drain(..size).collect();
        let mut events = Vec::new();
        self.muxes[1 - side].receive(&bytes, &mut events).expect("both follow the protocol");
        for event in events {
            if let Event::Opened { stream, payload } = event {
                assert_eq!(payload, b"payload");
                self.held[1 - side].push(stream);
            }
        }
    }

    /// Lets everything arrive and be read.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut moved = false;
            for side in [0, 1] {
                moved |= self.muxes[side].has_output() || !self.wires[side].is_empty();
                self.carry(side, usize::MAX);
                for stream in self.held[side].clone() {
                    moved |= self.read(side, stream, usize::MAX);
                }
            }
            if !moved {
                return;
            }
        }
        panic!("it never settles");
    }

    fn finish(mut self) {
        self.settle();
        for ((side, stream), direction) in &self.directions {
            let read_by_someone = self.held[1 - side].contains(stream);
            if read_by_someone && !direction.cut {
                assert!(direction.read == direction.written, "stream {stream} lacks something");
                assert_eq!(direction.seen_end, direction.ended);
            }
        }
        for side in [0, 1] {
            for stream in std::mem::take(&mut self.held[side]) {
                self.muxes[side].release(stream);
            }
        }
        self.settle();
        for mux in &self.muxes {
            assert_eq!((mux.streams.len(), mux.refused, mux.bytes_held()), (0, 0, 0));
        }
    }
}

proptest! {
    #[test]
    fn any_interleaving_arrives_intact_and_leaves_nothing(
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut world = World::new();
        for (client, step) in steps {
            world.step(usize::from(!client), step);
        }
        world.finish();
    }

    #[test]
    fn raw_bytes_of_either_role_never_panic_and_stay_bounded(
        client in any::<bool>(),
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
    ) {
        let role = if client { Role::Client } else { Role::Server };
        survive(Mux::new(role, limits(), Hello::ours(limits())), chunks)?;
    }

    #[test]
    fn plausible_frames_never_panic_and_stay_bounded(
        frames in prop::collection::vec((0_u8..8, 0_u32..12, 0_u32..320), 0..100),
    ) {
        let chunks = frames.into_iter().map(|(kind, stream, number)| {
            let script = script();
            match kind {
                0 | 1 => script.open(stream),
                2 => script.data(stream, number.max(1)),
                3 => script.end(stream),
                4 => script.reset(stream),
                5 => script.window(stream, number),
                6 => script.frame(Frame::Bye { reason: "" }),
                _ => Script(vec![7; number as usize]),
            }.0
        });
        survive(server(), chunks)?;
    }
}

fn survive(mut mux: Mux, chunks: impl IntoIterator<Item = Vec<u8>>) -> Result<(), TestCaseError> {
    mux.open(b"ours").ok();
    for chunk in chunks {
        let mut events = Vec::new();
        if mux.receive(&chunk, &mut events).is_err() {
            return Ok(());
        }
        for event in events {
            if let Event::Opened { stream, .. } = event {
                mux.write(stream, &[1; 2000]).ok();
                mux.read(stream, 100, |_| {}).ok();
            }
        }
        mux.transmit(&mut Vec::new(), &mut Vec::new());
        prop_assert!(mux.streams.len() <= 16);
        prop_assert!(mux.bytes_held() <= 8 * (2 * 2048 + 4000));
    }
    Ok(())
}
