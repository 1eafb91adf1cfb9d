use proptest::prelude::*;

use super::*;

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&write_name(name));
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message
}

#[test]
fn a_question_is_read() {
    let message = query("WWW.Example.com", 1);
    let question = Question { name: "www.example.com".to_owned(), kind: Kind::A };
    assert_eq!(parse(&message), Parsed::Question(question, message.len()));
    for (number, kind) in
        [(28, Kind::Aaaa), (12, Kind::Ptr), (255, Kind::Any), (65, Kind::Other), (15, Kind::Other)]
    {
        let Parsed::Question(question, _) = parse(&query("_x.a-1", number)) else { panic!() };
        assert_eq!(question, Question { name: "_x.a-1".to_owned(), kind });
    }
}

#[test]
fn what_follows_the_question_is_left_out() {
    let mut message = query("a.b", 1);
    let length = message.len();
    message[11] = 1;
    message.extend_from_slice(&[0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    let Parsed::Question(_, end) = parse(&message) else { panic!() };
    assert_eq!(end, length);
    let answer = answer(&message, Some(end), Code::Success, &[], 1);
    assert_eq!(answer.len(), length);
    assert_eq!(answer[10..12], [0, 0]);
}

#[test]
fn what_is_no_question_is_told_so_or_nothing() {
    assert_eq!(parse(&[]), Parsed::Nothing);
    assert_eq!(parse(&[0; 11]), Parsed::Nothing);
    let mut message = query("a", 1);
    message[2] |= RESPONSE;
    assert_eq!(parse(&message), Parsed::Nothing);
    let mut message = query("a", 1);
    message[2] = 0x28;
    assert_eq!(parse(&message), Parsed::Refused(Code::NotImplemented, None));
    for questions in [0, 2] {
        let mut message = query("a", 1);
        message[5] = questions;
        assert_eq!(parse(&message), Parsed::Refused(Code::Format, None));
    }
    let mut message = query("a", 1);
    let last = message.len() - 1;
    message[last] = 3;
    assert_eq!(parse(&message), Parsed::Refused(Code::Refused, Some(message.len())));
    assert_eq!(parse(&query("a", 1)[..14]), Parsed::Refused(Code::Format, None));
    let mut message = query("a", 1);
    message[12] = 0xc0;
    assert_eq!(parse(&message), Parsed::Refused(Code::Format, None), "a pointer");
}

#[test]
fn names_that_no_host_has_are_not_found() {
    for name in ["a b", "a\0b", "ü", "a/b", "*"] {
        let message = query(name, 1);
        let expected = Parsed::Refused(Code::NoName, Some(message.len()));
        assert_eq!(parse(&message), expected, "{name:?}");
    }
    let longest = format!("{}{}", "a.".repeat(126), "b");
    assert_eq!(longest.len(), 253);
    assert!(matches!(parse(&query(&longest, 1)), Parsed::Question(..)));
    let longer = query(&format!("{longest}b"), 1);
    assert_eq!(parse(&longer), Parsed::Refused(Code::Format, None));
}

#[test]
fn an_answer_has_the_question_and_the_records() {
    let message = query("a.b", 1);
    let records = [Record::A(Ipv4Addr::new(198, 18, 0, 1)), Record::Ptr("x.y".to_owned())];
    let out = answer(&message, Some(message.len()), Code::Success, &records, 60);
    assert_eq!(out[..12], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 2, 0, 0, 0, 0]);
    assert_eq!(out[12..message.len()], message[12..]);
    assert_eq!(
        out[message.len()..],
        [
            0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 18, 0, 1, //
            0xc0, 12, 0, 12, 0, 1, 0, 0, 0, 60, 0, 5, 1, b'x', 1, b'y', 0
        ]
    );
    let out = answer(&message, None, Code::Format, &[], 0);
    assert_eq!(out, [0x12, 0x34, 0x85, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
}

proptest! {
    #[test]
    fn no_message_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let question = match parse(&bytes) {
            Parsed::Question(question, end) => {
                prop_assert!(question.name.len() <= NAME_MAX);
                prop_assert!(end <= bytes.len());
                Some(end)
            }
            Parsed::Refused(_, end) => end,
            Parsed::Nothing => return Ok(()),
        };
        let records = [Record::A(Ipv4Addr::LOCALHOST)];
        let out = answer(&bytes, question, Code::Success, &records, 1);
        prop_assert!(out.len() <= MESSAGE_MAX);
    }

    #[test]
    fn every_proper_name_is_read_back(name in "[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,40}){0,4}") {
        let Parsed::Question(question, _) = parse(&query(&name, 1)) else {
            return Err(TestCaseError::fail("not read"));
        };
        prop_assert_eq!(question.name, name);
    }
}
