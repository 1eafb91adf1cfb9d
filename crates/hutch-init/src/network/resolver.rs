//! Answers the DNS questions that the guest asks at its configured name server, at once and by itself: nothing is ever
//! asked outside.
//!
//! A name gets an address that stands for it ([`super::names`]); whether there is such a name only the host finds out,
//! when someone connects. A name server outside can neither be asked nor told anything: its address is refused like
//! every other that is not spoken to by TCP.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hutch_wire::network::PROXY_NAMES;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::dns::{self, Code, Kind, MESSAGE_MAX, Parsed, Question, Record};
use super::names::Names;
use super::{ADDRESS, ADDRESS_V6};

/// How long a program may keep an answer, seconds.
const KEPT: u32 = 60;
/// Connections at once; programs ask over UDP.
const STREAMS_MAX: usize = 64;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Answers datagrams for ever.
pub(super) async fn datagrams(socket: UdpSocket, names: Arc<Names>) {
    let mut buffer = vec![0; 4096];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((count, peer)) => {
                if let Some(answer) = respond(&buffer[..count], &names) {
                    // Who does not take the answer asks again.
                    socket.send_to(&answer, peer).await.ok();
                }
            }
            // A peer that is gone shows up here too.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Answers over TCP for ever.
pub(super) async fn streams(listener: TcpListener, names: Arc<Names>) {
    let room = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let names = Arc::clone(&names);
        tokio::spawn(async move {
            // Whatever ends it, the program asks again.
            conversation(socket, &names).await.ok();
            drop(permit);
        });
    }
}

async fn conversation(mut socket: TcpStream, names: &Names) -> io::Result<()> {
    let mut message = Vec::new();
    loop {
        let length = timeout(IDLE, socket.read_u16()).await??;
        message.resize(usize::from(length), 0);
        timeout(IDLE, socket.read_exact(&mut message)).await??;
        let Some(answer) = respond(&message, names) else { return Ok(()) };
        let mut framed = u16::try_from(answer.len()).unwrap_or_default().to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(IDLE, socket.write_all(&framed)).await??;
    }
}

/// The answer to a message, if it deserves one.
fn respond(message: &[u8], names: &Names) -> Option<Vec<u8>> {
    let (question, end) = match dns::parse(message) {
        Parsed::Nothing => return None,
        Parsed::Refused(code, end) => {
            return Some(dns::answer(message, end, code, &[], KEPT));
        }
        Parsed::Question(question, end) => (question, end),
    };
    let (code, records) = resolve(&question, names);
    let answer = dns::answer(message, Some(end), code, &records, KEPT);
    debug_assert!(answer.len() <= MESSAGE_MAX + message.len());
    Some(answer)
}

fn resolve(question: &Question, names: &Names) -> (Code, Vec<Record>) {
    let name = question.name.as_str();
    let found = |v4: Ipv4Addr, v6: Option<Ipv6Addr>| {
        let records = match question.kind {
            Kind::A | Kind::Any => vec![Record::A(v4)],
            Kind::Aaaa => v6.map(Record::Aaaa).into_iter().collect(),
            Kind::Ptr | Kind::Other => Vec::new(),
        };
        (Code::Success, records)
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    match last {
        // The root has name servers, but none that could be asked.
        "" => return (Code::Success, Vec::new()),
        "localhost" => return found(Ipv4Addr::LOCALHOST, Some(Ipv6Addr::LOCALHOST)),
        "arpa" => return reverse(question, names),
        // Names that never are (RFC 6761, RFC 7686), and addresses in the place of names.
        "invalid" | "onion" => return (Code::NoName, Vec::new()),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            return (Code::NoName, Vec::new());
        }
        _ => {}
    }
    if PROXY_NAMES.contains(&name) {
        return found(ADDRESS, None);
    }
    if !matches!(question.kind, Kind::A | Kind::Any) {
        // Nobody has asked for its address yet, so it needs none.
        return (Code::Success, Vec::new());
    }
    match names.address(name) {
        Some(address) => found(address, None),
        None => (Code::Failure, Vec::new()),
    }
}

/// The name of an address of ours.
fn reverse(question: &Question, names: &Names) -> (Code, Vec<Record>) {
    let address = reverse_address(&question.name);
    let v6 = reverse_address_v6(&question.name);
    let name = match (address, v6) {
        (Some(ADDRESS), _) | (_, Some(ADDRESS_V6)) => Some(PROXY_NAMES[0].to_owned()),
        (Some(address), _) if address.is_loopback() => Some("localhost".to_owned()),
        (_, Some(Ipv6Addr::LOCALHOST)) => Some("localhost".to_owned()),
        (Some(address), _) => names.name(address),
        _ => None,
    };
    match (name, question.kind) {
        (None, _) => (Code::NoName, Vec::new()),
        (Some(name), Kind::Ptr | Kind::Any) => (Code::Success, vec![Record::Ptr(name)]),
        (Some(_), _) => (Code::Success, Vec::new()),
    }
}

/// `1.0.18.198.in-addr.arpa`.
fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let mut labels = name.strip_suffix(".in-addr.arpa")?.split('.');
    let mut octets = [0; 4];
    for octet in octets.iter_mut().rev() {
        *octet = labels.next()?.parse().ok()?;
    }
    labels.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// 32 hexadecimal digits, the last one first.
fn reverse_address_v6(name: &str) -> Option<Ipv6Addr> {
    let labels: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').collect();
    if labels.len() != 32 {
        return None;
    }
    let mut bits = 0_u128;
    for label in labels.iter().rev() {
        let mut letters = label.chars();
        let (Some(letter), None) = (letters.next(), letters.next()) else { return None };
        bits = bits << 4 | u128::from(letter.to_digit(16)?);
    }
    Some(Ipv6Addr::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(names: &Names, name: &str, kind: Kind) -> (Code, Vec<Record>) {
        resolve(&Question { name: name.to_owned(), kind }, names)
    }

    #[test]
    fn a_name_has_one_ipv4_address_and_nothing_else() {
        let names = Names::default();
        let (code, records) = ask(&names, "example.com", Kind::A);
        assert_eq!((code, records.len()), (Code::Success, 1));
        assert_eq!(ask(&names, "example.com", Kind::A).1, records);
        assert_eq!(ask(&names, "example.com", Kind::Any).1, records);
        for kind in [Kind::Aaaa, Kind::Other, Kind::Ptr] {
            assert_eq!(ask(&names, "example.com", kind), (Code::Success, Vec::new()));
        }
    }

    #[test]
    fn the_address_of_a_name_has_that_name() {
        let names = Names::default();
        let (_, records) = ask(&names, "example.com", Kind::A);
        let Some(Record::A(address)) = records.first() else { panic!() };
        let [a, b, c, d] = address.octets();
        let reverse = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
        let record = Record::Ptr("example.com".to_owned());
        assert_eq!(ask(&names, &reverse, Kind::Ptr), (Code::Success, vec![record]));
        assert_eq!(ask(&names, &reverse, Kind::A), (Code::Success, Vec::new()));
    }

    #[test]
    fn the_machines_own_names_are_known_in_both_directions() {
        let names = Names::default();
        for name in PROXY_NAMES {
            assert_eq!(ask(&names, name, Kind::A), (Code::Success, vec![Record::A(ADDRESS)]));
            assert_eq!(ask(&names, name, Kind::Aaaa), (Code::Success, Vec::new()));
        }
        for name in ["localhost", "a.localhost"] {
            let v4 = vec![Record::A(Ipv4Addr::LOCALHOST)];
            assert_eq!(ask(&names, name, Kind::A), (Code::Success, v4));
            let v6 = vec![Record::Aaaa(Ipv6Addr::LOCALHOST)];
            assert_eq!(ask(&names, name, Kind::Aaaa), (Code::Success, v6));
        }
        let one = format!("1.{}ip6.arpa", "0.".repeat(31));
        for (name, expected) in [
            ("254.255.19.198.in-addr.arpa", "host.docker.internal"),
            ("1.0.0.127.in-addr.arpa", "localhost"),
            (&one, "localhost"),
        ] {
            let record = Record::Ptr(expected.to_owned());
            assert_eq!(ask(&names, name, Kind::Ptr), (Code::Success, vec![record]), "{name}");
        }
    }

    #[test]
    fn what_is_no_name_does_not_exist() {
        let names = Names::default();
        for name in [
            "a.invalid",
            "x.onion",
            "10.0.0.1",
            "1",
            "8.8.8.8.in-addr.arpa",
            "x.in-addr.arpa",
            "1.ip6.arpa",
            "arpa",
        ] {
            assert_eq!(ask(&names, name, Kind::A).0, Code::NoName, "{name}");
            assert_eq!(ask(&names, name, Kind::Ptr).0, Code::NoName, "{name}");
        }
    }
}
