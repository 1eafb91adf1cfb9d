use proptest::prelude::*;
use tokio::io::AsyncBufReadExt as _;

use super::*;

fn parse(line: &str) -> Result<Message, ControlError> {
    Message::parse(line.as_bytes())
}

#[test]
fn what_qemu_says_is_understood() {
    assert_eq!(
        parse(r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#).unwrap(),
        Message::Greeting
    );
    let answer = parse(r#"{"return": {"running": true}, "id": 7}"#).unwrap();
    assert_eq!(answer, Message::Answer { id: 7, result: Ok(json!({ "running": true })) });
    let refusal = parse(r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 8}"#).unwrap();
    assert_eq!(refusal, Message::Answer { id: 8, result: Err("no".to_owned()) });
    let event = |line| parse(line).unwrap();
    assert_eq!(
        event(
            r#"{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#
        ),
        Message::Event(Event::Shutdown(ShutdownReason::GuestReset))
    );
    assert_eq!(
        event(r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "a-new-reason"}}"#),
        Message::Event(Event::Shutdown(ShutdownReason::Other))
    );
    assert_eq!(
        event(r#"{"event": "SHUTDOWN", "data": 3}"#),
        Message::Event(Event::Shutdown(ShutdownReason::Other))
    );
    assert_eq!(
        event(r#"{"event": "GUEST_PANICKED", "data": {"action": "poweroff"}}"#),
        Message::Event(Event::Panicked)
    );
    assert_eq!(event(r#"{"event": "RESUME"}"#), Message::Event(Event::Other));
}

#[test]
fn what_is_not_of_the_protocol_is_refused() {
    for line in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"return": {}}"#,
        r#"{"id": 1}"#,
        r#"{"id": -1, "return": {}}"#,
        "{\"QMP\":",
        "\u{0}",
    ] {
        assert!(matches!(parse(line), Err(ControlError::Malformed)), "{line:?}");
    }
    assert!(matches!(parse(&"[".repeat(LINE_MAX)), Err(ControlError::Malformed)));
}

#[test]
fn a_line_without_an_end_is_bounded() {
    let mut lines = Lines::default();
    for _ in 0..LINE_MAX / 1024 {
        assert!(lines.push(&[b'x'; 1024]).unwrap().is_empty());
    }
    assert!(matches!(lines.push(b"x"), Err(ControlError::LineTooLong)));
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_how_the_bytes_arrive(text in proptest::collection::vec(any::<u8>(), 0..400), cut in 1_usize..50) {
        let whole = Lines::default().push(&text).unwrap();
        let mut lines = Lines::default();
        let mut pieces = Vec::new();
        for piece in text.chunks(cut) {
            pieces.extend(lines.push(piece).unwrap());
        }
        prop_assert_eq!(&pieces, &whole);
        let mut joined: Vec<u8> = whole.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
        joined.extend(&lines.partial);
        prop_assert_eq!(joined, text);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _verdict = Message::parse(&line);
    }

    #[test]
    fn no_json_makes_the_parser_panic(line in r#"\{("(QMP|id|return|error|event|data)": ?(1|-1|"SHUTDOWN"|\{\}|\[\]|null|\{"desc": 1\}|1e999),?){0,4}\}"#) {
        let _verdict = Message::parse(line.as_bytes());
    }
}

/// A peer that answers the greeting command and then does what the test says.
async fn client_of(
    peer: impl AsyncFnOnce(UnixStream),
) -> (Result<Client, ControlError>, Result<Value, ControlError>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let talk = async {
        match Client::connect(ours).await {
            Ok(mut client) => {
                let answer = client.execute("cont", json!({})).await;
                (Ok(client), answer)
            }
            Err(error) => (Err(error), Ok(Value::Null)),
        }
    };
    let peer = async {
        let mut theirs = tokio::io::BufReader::new(theirs);
        let mut line = String::new();
        theirs.read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(command["execute"], "qmp_capabilities");
        let answer = b"{\"QMP\": {}}\r\n{\"return\": {}, \"id\": 1}\r\n";
        theirs.get_mut().write_all(answer).await.unwrap();
        theirs.read_line(&mut line).await.unwrap();
        peer(theirs.into_inner()).await;
    };
    tokio::join!(talk, peer).0
}

#[tokio::test]
async fn commands_are_answered_and_events_between_are_remembered() {
    let (client, answer) = client_of(async |mut peer: UnixStream| {
        let said = b"{\"event\": \"RESUME\"}\n{\"return\": {\"ok\": 1}, \"id\": 2}\n\
            {\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n\
            {\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"host-signal\"}}\n";
        peer.write_all(said).await.unwrap();
    })
    .await;
    assert_eq!(answer.unwrap(), json!({ "ok": 1 }));
    let observed = client.unwrap().observed().await;
    assert_eq!(observed.shutdown, Some(ShutdownReason::GuestShutdown));
    assert!(!observed.panicked);
}

#[tokio::test]
async fn a_refusal_is_shortened_and_cleaned() {
    let (_, answer) = client_of(async |mut peer: UnixStream| {
        let long = format!(
            "{{\"error\": {{\"desc\": \"no\\u001b[31m{}\"}}, \"id\": 2}}\n",
            "x".repeat(5000)
        );
        peer.write_all(long.as_bytes()).await.unwrap();
    })
    .await;
    let error = answer.unwrap_err().to_string();
    assert!(error.starts_with("it refused cont: no[31mxxx"), "{error}");
    assert!(error.len() < 400);
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_an_error() {
    for (said, expected) in [
        ("nonsense\n".to_owned(), "not of its protocol"),
        ("{\"return\": {}, \"id\": 9}\n".to_owned(), "not of its protocol"),
        ("x".repeat(LINE_MAX + 1), "more than 65536 bytes"),
        (String::new(), "ended"),
    ] {
        let (_, answer) = client_of(async |mut peer: UnixStream| {
            // The client may have hung up in the middle of it.
            peer.write_all(said.as_bytes()).await.ok();
        })
        .await;
        let error = answer.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn answers_that_nobody_asked_for_are_bounded() {
    let (client, answer) = client_of(async |mut peer: UnixStream| {
        let mut said = String::from("{\"return\": {}, \"id\": 2}\n");
        said.push_str(&"{\"return\": {}, \"id\": 3}\n".repeat(1000));
        peer.write_all(said.as_bytes()).await.ok();
    })
    .await;
    answer.unwrap();
    assert!(matches!(client.unwrap().observed().await.error, Some(ControlError::Malformed)));
}
