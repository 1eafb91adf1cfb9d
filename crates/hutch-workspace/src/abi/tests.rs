use std::ffi::CString;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn header(opcode: u32, body: usize) -> Header {
    let mut bytes = [0; HEADER_LEN];
    let len = u32::try_from(HEADER_LEN + body).unwrap();
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
    bytes[8..16].copy_from_slice(&7_u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&8_u64.to_le_bytes());
    bytes[32..36].copy_from_slice(&9_u32.to_le_bytes());
    Header::parse(&bytes).unwrap()
}

fn parse(opcode: u32, body: &[u8]) -> Result<Request<'_>, Malformed> {
    Request::parse(&header(opcode, body.len()), body)
}

#[test]
fn a_header_names_request_node_and_thread() {
    let header = header(3, 5);
    assert_eq!((header.len, header.opcode), (45, 3));
    assert_eq!((header.unique, header.node, header.pid), (7, 8, 9));
}

#[test]
fn names_are_single_components() {
    for good in ["a", "...", "..a", ".a", "a b", "ä", "\u{1}", "-"] {
        let name = CString::new(good).unwrap();
        assert_eq!(Name::parse(&name).unwrap().bytes(), good.as_bytes());
    }
    for bad in ["", ".", "..", "/", "a/b", "/a", "a/"] {
        let name = CString::new(bad).unwrap();
        assert_eq!(Name::parse(&name), Err(NameError::NotOneComponent), "{bad:?}");
    }
    let longest = CString::new(vec![0xff; 255]).unwrap();
    assert!(Name::parse(&longest).is_ok());
    let longer = CString::new(vec![b'x'; 256]).unwrap();
    assert_eq!(Name::parse(&longer), Err(NameError::TooLong));
}

#[test]
fn two_names_are_told_apart() {
    let body = [&5_u64.to_le_bytes()[..], b"old\0new\0"].concat();
    let Ok(Request::Rename { name, to, new_name, flags }) = parse(opcode::RENAME, &body) else {
        panic!("a rename");
    };
    assert_eq!((name.bytes(), to, new_name.bytes(), flags), (&b"old"[..], 5, &b"new"[..], 0));
    // The second one is missing, or has no end.
    for body in [&b"\x05\0\0\0\0\0\0\0old\0"[..], b"\x05\0\0\0\0\0\0\0old\0new"] {
        assert_eq!(parse(opcode::RENAME, body), Err(Malformed::Body));
    }
}

#[test]
fn written_data_is_what_the_size_says_and_not_more() {
    let fixed = |size: u32| {
        [
            &1_u64.to_le_bytes()[..],
            &2_u64.to_le_bytes(),
            &size.to_le_bytes(),
            &4_u32.to_le_bytes(),
            &[0; 8],
            &5_u32.to_le_bytes(),
            &[0; 4],
            b"data",
        ]
        .concat()
    };
    let body = fixed(3);
    let expected =
        Write { handle: 1, offset: 2, write_flags: 4, flags: 5, data: Data::Here(b"dat") };
    assert_eq!(parse(opcode::WRITE, &body), Ok(Request::Write(expected)));
    assert_eq!(parse(opcode::WRITE, &fixed(5)), Err(Malformed::Body));
    assert_eq!(parse(opcode::WRITE, &fixed(u32::MAX)), Err(Malformed::Body));
}

#[test]
fn times_beyond_a_second_are_refused() {
    let mut body = [0; 88];
    body[0] = 1 << 4;
    body[56..60].copy_from_slice(&999_999_999_u32.to_le_bytes());
    let Ok(Request::SetAttributes(changes)) = parse(opcode::SETATTR, &body) else {
        panic!("a change");
    };
    assert_eq!(changes.atime, TimeChange::To { seconds: 0, nanoseconds: 999_999_999 });
    assert_eq!((changes.mtime, changes.size, changes.mode), (TimeChange::Keep, None, None));
    // UTIME_NOW would otherwise be smuggled in.
    body[56..60].copy_from_slice(&0x3fff_ffff_u32.to_le_bytes());
    assert_eq!(parse(opcode::SETATTR, &body), Err(Malformed::Body));
}

#[test]
fn a_batch_holds_what_it_counts() {
    let body = |count: u32, entries: usize| {
        [&count.to_le_bytes()[..], &[0; 4], &vec![1; 16 * entries]].concat()
    };
    let two = body(2, 2);
    let Ok(Request::BatchForget { nodes }) = parse(opcode::BATCH_FORGET, &two) else {
        panic!("a batch");
    };
    assert_eq!(nodes.len(), 2);
    for (count, entries) in [(2, 1), (u32::MAX, 3), (0x1000_0000, 0)] {
        assert_eq!(parse(opcode::BATCH_FORGET, &body(count, entries)), Err(Malformed::Body));
    }
}

#[test]
fn extensions_at_the_end_are_left_out() {
    let mut header = header(opcode::LOOKUP, 0);
    assert!(Request::parse(&header, b"name\0 extension").is_ok());
    let mut bytes = [0; HEADER_LEN];
    bytes[0] = 60;
    bytes[4] = 1;
    bytes[36] = 2;
    header = Header::parse(&bytes).unwrap();
    assert!(Request::parse(&header, b"na\0\0extension........").is_ok());
    assert_eq!(Request::parse(&header, b"short"), Err(Malformed::Body));
    assert_eq!(Request::parse(&header, b"name without end"), Err(Malformed::Body));
}

#[test]
fn replies_have_the_sizes_of_the_kernel() {
    let attributes = Attributes { size: 1, ..Attributes::default() };
    let valid = Valid { entry: 1, attributes: 2 };
    let entry = Entry { node: 3, valid, attributes };
    let mut reply = Reply::new();
    reply.put_entry(&entry);
    assert_eq!(reply.len(), 128);
    reply.clear();
    reply.put_attr_out(1, &attributes);
    assert_eq!(reply.len(), 104);
    for (name, plus) in [("a", false), ("a", true), ("12345678", true), ("123456789", false)] {
        reply.clear();
        reply.put_dirent(plus.then_some(&entry), 1, 2, 4, name.as_bytes());
        assert_eq!(reply.len(), Reply::dirent_len(name.len(), plus), "{name}");
    }
    assert_eq!(reply.inval_inode(1, true).len(), 40);
    assert_eq!(reply.expire_entry(1, b"name", true).len(), 37);
    let message = reply.own(5, b"body");
    assert_eq!(message, b"\x14\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0body");
}

proptest! {
    #[test]
    fn any_header_is_bounded(bytes in any::<[u8; HEADER_LEN]>()) {
        match Header::parse(&bytes) {
            Ok(header) => prop_assert!((HEADER_LEN..=REQUEST_MAX).contains(&header.len)),
            Err(error) => {
                let is_length = matches!(error, Malformed::Length { .. });
                prop_assert!(is_length);
            }
        }
    }

    #[test]
    fn any_body_is_a_request_or_an_error(opcode in 0_u32..64, body in vec(any::<u8>(), 0..300)) {
        if let Ok(Request::Write(Write { data: Data::Here(data), .. })) = parse(opcode, &body) {
            prop_assert!(data.len() <= body.len());
        }
    }

    /// Bytes that are mostly names and small numbers come further than random ones.
    #[test]
    fn no_request_has_a_name_that_leads_elsewhere(
        opcode in 0_u32..64,
        fixed in vec(0_u8..4, 0..72),
        name in "[./ab]{0,4}",
        second in "[./ab]{0,4}",
    ) {
        let body = [&fixed[..], name.as_bytes(), b"\0", second.as_bytes(), b"\0"].concat();
        let names = match parse(opcode, &body) {
            Ok(
                Request::Lookup { name }
                | Request::Symlink { name, .. }
                | Request::MakeNode { name, .. }
                | Request::MakeDirectory { name, .. }
                | Request::Unlink { name }
                | Request::RemoveDirectory { name }
                | Request::Link { name, .. }
                | Request::Create { name, .. },
            ) => vec![name],
            Ok(Request::Rename { name, new_name, .. }) => vec![name, new_name],
            _ => Vec::new(),
        };
        for name in names {
            let bytes = name.bytes();
            prop_assert!(!bytes.is_empty() && !bytes.contains(&b'/') && bytes != b"." && bytes != b"..");
        }
    }
}
