//! The guest's network for real, in a network namespace of this machine: interface, rules, capture and resolver, with a
//! worker of the test's own at the other end.
//!
//! Needs root, as the guest's init has; the project's test run has it.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::num::NonZeroU32;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hutch_init::network::{ADDRESS, ADDRESS_V6, Prepared, Uplink, start};
use hutch_wire::network::{Destination, Open};
use hutch_wire::{Connection, Limits, Role, Stream};
use tokio::io::AsyncWriteExt as _;

/// Stands in for `dummy`, which not every kernel of a test machine has: takes packets and drops them, too.
const DRIVER: &str = "bridge";
/// What is refused is refused within this time, however slow the machine is.
const AT_ONCE: Duration = Duration::from_secs(2);
const NOWHERE: &str = "203.0.113.34";

/// What the test's worker does with a stream.
#[derive(Debug, Clone, Copy)]
enum Worker {
    /// Says what it was opened for, then echoes until the end.
    Tells,
    /// Resets every stream.
    Refuses,
    /// Says a word and lets go without reading.
    AnswersAndLeaves,
    /// Is not there.
    Absent,
}

/// Runs `test` in a network namespace of its own, in which init's network is served.
fn in_guest(worker: Worker, test: impl FnOnce() + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root, as the guest's init has");
    let outside = thread::spawn(move || {
        own_namespace();
        run(&["ip", "link", "set", "lo", "up"]);
        let prepared = Prepared::make(DRIVER).unwrap();
        let (done, finished) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (uplink, driver) = Uplink::new();
            start(prepared, &uplink).unwrap();
            if !matches!(worker, Worker::Absent) {
                driver.expect();
                let (ours, theirs) = tokio::io::duplex(256 * 1024);
                tokio::spawn(async move { driver.serve(ours).await });
                tokio::spawn(work(theirs, worker));
            }
            // A thread has the namespace of the one that started it.
            let tester = thread::spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
                done.send(()).ok();
                result
            });
            finished.await.ok();
            if let Err(panic) = tester.join().unwrap() {
                std::panic::resume_unwind(panic);
            }
        });
    });
    if let Err(panic) = outside.join() {
        std::panic::resume_unwind(panic);
    }
}

#[expect(deprecated, reason = "unsafe only for descriptor tables, which are not asked for")]
fn own_namespace() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
}

async fn work(transport: tokio::io::DuplexStream, worker: Worker) {
    let (_connection, mut incoming) =
        Connection::establish(transport, Role::Client, Limits::default()).await.unwrap();
    while let Some(stream) = incoming.next().await {
        let open: Open = postcard::from_bytes(stream.payload()).unwrap();
        match worker {
            Worker::Refuses => stream.refuse("not allowed"),
            Worker::AnswersAndLeaves => {
                let mut stream = stream.accept();
                stream.write_all(&vec![b'x'; 100_000]).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            Worker::Tells | Worker::Absent => {
                tokio::spawn(tell(stream.accept(), open));
            }
        }
    }
}

async fn tell(mut stream: Stream, open: Open) {
    stream.write_all(format!("{open:?}\n").as_bytes()).await.ok();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
        writer.shutdown().await.ok();
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's own tools")]
fn output(command: &[&str]) -> Output {
    Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output().unwrap()
}

fn run(command: &[&str]) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Connects, sends, and gives everything that comes back until the end.
fn talk(address: impl Into<IpAddr>, port: u16, words: &[u8]) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(SocketAddr::new(address.into(), port))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.write_all(words)?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn captured(destination: Destination, port: u16) -> String {
    format!("{:?}\n", Open::Captured { destination, port })
}

/// Asks a name server for an IPv4 address; gives its message.
fn ask(server: IpAddr, name: &str) -> std::io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect((server, 53))?;
    let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&message)?;
    let mut answer = vec![0; 512];
    let count = socket.recv(&mut answer)?;
    answer.truncate(count);
    Ok(answer)
}

/// Asks the resolver at `server` for an IPv4 address.
fn resolve(server: impl Into<IpAddr>, name: &str) -> Option<Ipv4Addr> {
    let answer = ask(server.into(), name).unwrap();
    let octets: [u8; 4] = answer[answer.len() - 4..].try_into().unwrap();
    (answer[3] & 15 == 0).then(|| octets.into())
}

#[test]
fn nft_shows_the_rules_as_they_were_meant() {
    in_guest(Worker::Absent, || {
        // Versions differ in whether they name this priority.
        let plain = |text: &str| text.replace("priority dstnat;", "priority -100;");
        let shown = plain(&run(&["nft", "list", "ruleset"]));
        let expected = plain(include_str!("network/ruleset.nft"));
        assert_eq!(shown, expected);
    });
}

#[test]
fn a_connection_to_anywhere_reaches_the_worker_with_its_destination() {
    in_guest(Worker::Tells, || {
        for (address, port) in
            [(NOWHERE, 80), ("10.0.0.1", 1), ("169.254.169.254", 65535), ("2001:db8::1", 443)]
        {
            let address: IpAddr = address.parse().unwrap();
            let expected = captured(Destination::Address(address), port) + "hello";
            assert_eq!(talk(address, port, b"hello").unwrap(), expected);
        }
    });
}

#[test]
fn a_name_travels_with_the_connection() {
    in_guest(Worker::Tells, || {
        let address = resolve(ADDRESS, "Example.COM").unwrap();
        assert_eq!(resolve(ADDRESS, "example.com"), Some(address));
        let expected = captured(Destination::Name("example.com".to_owned()), 443);
        assert_eq!(talk(address, 443, b"").unwrap(), expected);
        // An address that could stand for a name, but for none that was asked for.
        let unknown = Ipv4Addr::new(198, 18, 99, 99);
        assert!(talk(unknown, 443, b"x").is_err());
    });
}

#[test]
fn nobody_answers_in_the_name_of_another_name_server() {
    in_guest(Worker::Tells, || {
        assert!(resolve(ADDRESS, "example.com").is_some());
        assert!(resolve(ADDRESS_V6, "example.com").is_some());
        let began = Instant::now();
        for server in ["8.8.8.8", "2001:4860:4860::8888", "198.18.0.1"] {
            let error = ask(server.parse().unwrap(), "example.com").unwrap_err();
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{server}");
            // By TCP it is a connection like any other: the host decides.
            let server: IpAddr =
                if server.starts_with("198") { continue } else { server.parse().unwrap() };
            let expected = captured(Destination::Address(server), 53) + "q";
            assert_eq!(talk(server, 53, b"q").unwrap(), expected);
        }
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    });
}

#[test]
fn the_resolver_answers_over_tcp_too() {
    in_guest(Worker::Tells, || {
        let question = b"\0\x13\x01\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
        for address in [IpAddr::V4(ADDRESS), IpAddr::V6(ADDRESS_V6)] {
            let mut socket = TcpStream::connect((address, 53)).unwrap();
            socket.write_all(question).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).unwrap();
            assert!(answer.len() > 30, "{answer:?}");
        }
    });
}

#[test]
fn the_explicit_proxy_and_the_users_machine_share_an_address() {
    in_guest(Worker::Tells, || {
        for address in [IpAddr::V4(ADDRESS), IpAddr::V6(ADDRESS_V6)] {
            assert_eq!(talk(address, 3128, b"x").unwrap(), format!("{:?}\nx", Open::Proxy));
            for port in [80, 3129, 5432] {
                let name = Destination::Name("host.docker.internal".to_owned());
                assert_eq!(talk(address, port, b"").unwrap(), captured(name, port));
            }
        }
        assert_eq!(resolve(ADDRESS, "host.docker.internal"), Some(ADDRESS));
        assert_eq!(resolve(ADDRESS, "gateway.docker.internal"), Some(ADDRESS));
    });
}

#[test]
fn what_is_not_tcp_is_refused_at_once() {
    in_guest(Worker::Tells, || {
        let began = Instant::now();
        for address in [NOWHERE, "2001:db8::1", "198.18.0.9"] {
            let any = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.connect((address, 443)).unwrap();
            let refused = socket.send(b"x").and_then(|_| socket.recv(&mut [0; 8])).unwrap_err();
            assert_ne!(refused.kind(), std::io::ErrorKind::WouldBlock, "{address}");
        }
        assert!(!output(&["ping", "-c", "1", "-W", "10", NOWHERE]).status.success());
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    });
}

#[test]
fn multicast_broadcast_and_frames_are_refused_at_once() {
    use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
    in_guest(Worker::Tells, || {
        for (address, source) in [
            ("224.0.0.251:5353", "0.0.0.0:0"),
            ("239.255.255.250:1900", "198.19.255.254:0"),
            ("255.255.255.255:67", "0.0.0.0:0"),
            ("[ff02::fb]:5353", "[::]:0"),
        ] {
            let socket = UdpSocket::bind(source).unwrap();
            socket.set_broadcast(true).unwrap();
            assert!(socket.send_to(b"x", address).is_err(), "{address}");
        }
        for protocol in [1, 2, 4, 41, 47, 50, 132] {
            let protocol = rustix::net::Protocol::from_raw(NonZeroU32::new(protocol).unwrap());
            let raw = socket(AddressFamily::INET, SocketType::RAW, Some(protocol)).unwrap();
            let to: SocketAddr = (NOWHERE.parse::<IpAddr>().unwrap(), 0).into();
            assert!(sendto(&raw, &[0; 32], SendFlags::empty(), &to).is_err(), "{protocol:?}");
        }
        run(&["python3", "-c", FRAME]);
    });
}

/// Writes a frame to the interface itself, past every rule, and expects an error.
const FRAME: &str = "import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.bind(('egress', 0x800))
try: s.send(bytes(60))
except OSError: pass
else: raise SystemExit('it was taken')";

#[test]
fn a_refusal_is_a_reset() {
    in_guest(Worker::Refuses, || {
        let began = Instant::now();
        for (address, port) in [(NOWHERE.parse().unwrap(), 80), (IpAddr::V4(ADDRESS), 3128)] {
            let error = talk(address, port, &[0; 100_000]).unwrap_err();
            let kind = error.kind();
            assert!(
                matches!(
                    kind,
                    std::io::ErrorKind::ConnectionReset
                        | std::io::ErrorKind::BrokenPipe
                        | std::io::ErrorKind::NotConnected
                ),
                "{error}"
            );
        }
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    });
}

#[test]
fn without_a_network_connections_are_reset_and_names_still_answer() {
    in_guest(Worker::Absent, || {
        let began = Instant::now();
        assert!(talk(NOWHERE.parse::<IpAddr>().unwrap(), 80, b"x").is_err());
        assert!(resolve(ADDRESS, "example.com").is_some());
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    });
}

#[test]
fn what_the_host_said_before_it_let_go_arrives() {
    in_guest(Worker::AnswersAndLeaves, || {
        let mut socket = TcpStream::connect((NOWHERE, 80)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut sender = socket.try_clone().unwrap();
        let sending = thread::spawn(move || {
            // Whether all of it is taken is not the point.
            sender.write_all(&[0; 3_000_000]).ok();
            sender.shutdown(Shutdown::Write).ok();
        });
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 100_000);
        sending.join().unwrap();
    });
}

#[test]
fn loopback_is_nobody_elses_business() {
    in_guest(Worker::Tells, || {
        for address in ["127.0.0.1:0", "127.1.2.3:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let client = TcpStream::connect(address).unwrap();
            assert_eq!(client.peer_addr().unwrap(), address);
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
        let refused = TcpStream::connect("127.0.0.1:9").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let one = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        one.send_to(b"x", other.local_addr().unwrap()).unwrap();
        assert_eq!(other.recv(&mut [0; 8]).unwrap(), 1);
    });
}

#[test]
fn one_source_port_may_have_several_destinations() {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    in_guest(Worker::Tells, || {
        // As the kernel does by itself when a program has many connections: both look the same once they are captured.
        let source: SocketAddr = "198.19.255.254:40000".parse().unwrap();
        let mut all = Vec::new();
        for last in 1..=3 {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            sockopt::set_socket_reuseaddr(&socket, true).unwrap();
            bind(&socket, &source).unwrap();
            let began = Instant::now();
            let destination: Ipv4Addr = Ipv4Addr::new(203, 0, 113, last);
            connect(&socket, &SocketAddr::from((destination, 80))).unwrap();
            // A packet that was lost is sent again after a second.
            assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
            all.push((TcpStream::from(socket), destination));
        }
        for (mut socket, destination) in all {
            socket.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, captured(Destination::Address(destination.into()), 80));
        }
    });
}

#[test]
fn a_thousand_connections_live_at_once() {
    in_guest(Worker::Tells, || {
        let address: IpAddr = NOWHERE.parse().unwrap();
        let mut all: Vec<TcpStream> =
            (0..1000).map(|_| TcpStream::connect((address, 80)).unwrap()).collect();
        for socket in &mut all {
            socket.write_all(b"end").unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
        }
        let expected = captured(Destination::Address(address), 80) + "end";
        for socket in &mut all {
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, expected);
        }
    });
}

/// A container as an engine makes it: a network namespace behind a bridge. Ends with the test's namespace.
struct Box {
    holder: std::process::Child,
}

impl Box {
    #[expect(clippy::disallowed_methods, reason = "the test's own tools")]
    fn new(number: u8, bridge: &str) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let itself = Self { holder };
        let pid = itself.pid();
        let (outer, inner) = (format!("v{number}"), format!("w{number}"));
        run(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", &inner]);
        run(&["ip", "link", "set", &inner, "netns", &pid]);
        run(&["ip", "link", "set", &outer, "master", bridge, "up"]);
        itself.run(&["ip", "addr", "add", &format!("172.17.0.{number}/16"), "dev", &inner]);
        itself.run(&["ip", "link", "set", &inner, "up"]);
        itself.run(&["ip", "link", "set", "lo", "up"]);
        itself.run(&["ip", "route", "add", "default", "via", "172.17.0.1"]);
        itself
    }

    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    fn run(&self, command: &[&str]) -> String {
        run(&self.inside(command))
    }

    fn output(&self, command: &[&str]) -> Output {
        output(&self.inside(command))
    }

    fn inside<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        // The number lives as long as the process; a leak of a few bytes in a test is none.
        let pid: &'static str = String::leak(self.pid());
        [&["nsenter", "--net", "--target", pid, "--"], command].concat()
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

fn bridge() {
    run(&["ip", "link", "add", "docker0", "type", "bridge"]);
    run(&["ip", "addr", "add", "172.17.0.1/16", "dev", "docker0"]);
    run(&["ip", "link", "set", "docker0", "up"]);
}

const CLIENT: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.shutdown(socket.SHUT_WR)
sys.stdout.write(s.makefile().read())";

/// One datagram after the other, each of which must be refused before the next.
const MANY: &str = "import socket
for number in range(50):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect(('203.0.113.34', 1000 + number))
    try:
        s.send(b'x')
        s.recv(1)
    except TimeoutError: raise SystemExit(f'nobody said anything to {number}')
    except OSError: pass";

#[test]
fn containers_are_captured_too() {
    in_guest(Worker::Tells, || {
        bridge();
        let container = Box::new(2, "docker0");
        let say =
            |address: &str, port: &str| container.run(&["python3", "-c", CLIENT, address, port]);
        let nowhere = captured(Destination::Address(NOWHERE.parse().unwrap()), 80);
        assert_eq!(say(NOWHERE, "80"), nowhere);
        let proxy = ADDRESS.to_string();
        assert_eq!(say(&proxy, "3128"), format!("{:?}\n", Open::Proxy));
        let machine = Destination::Name("host.docker.internal".to_owned());
        assert_eq!(say(&proxy, "8080"), captured(machine, 8080));
        let look_up = |server: &str| {
            let server = format!("@{server}");
            container.output(&["dig", "+short", "+tries=1", "+time=10", &server, "in.a.container"])
        };
        let address = String::from_utf8(look_up(&proxy).stdout).unwrap();
        let name = Destination::Name("in.a.container".to_owned());
        assert_eq!(say(address.trim(), "1"), captured(name, 1));
        let began = Instant::now();
        assert!(!look_up("8.8.8.8").status.success());
        container.run(&["python3", "-c", MANY]);
        let ping = container.output(&["ping", "-c", "1", "-W", "10", NOWHERE]);
        assert!(String::from_utf8_lossy(&ping.stdout).contains("filtered"), "{ping:?}");
        assert!(began.elapsed() < AT_ONCE);
    });
}

#[test]
fn containers_reach_each_other_and_published_ports_work() {
    in_guest(Worker::Tells, || {
        bridge();
        let (one, other) = (Box::new(2, "docker0"), Box::new(3, "docker0"));
        let (tell, ready) = mpsc::channel();
        let pid = one.pid();
        let server = thread::spawn(move || {
            let script = "import socket
s = socket.create_server(('0.0.0.0', 80)); print('ready', flush=True)
for _ in range(3):
    c, _ = s.accept(); c.sendall(b'from one'); c.close()";
            #[expect(clippy::disallowed_methods, reason = "the test's own tools")]
            let mut server = Command::new("nsenter")
                .args(["--net", "--target", &pid, "--", "python3", "-c", script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            server.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
            tell.send(()).unwrap();
            server.wait().unwrap();
        });
        ready.recv().unwrap();
        // As the engine publishes a port on the machine's addresses.
        run(&["nft", "add table ip docker"]);
        for chain in [
            "add chain ip docker pre { type nat hook prerouting priority -100; }",
            "add chain ip docker out { type nat hook output priority -100; }",
            "add rule ip docker pre fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80",
            "add rule ip docker out fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80",
            "add chain ip docker post { type nat hook postrouting priority 100; }",
            "add rule ip docker post oifname docker0 ip saddr 127.0.0.0/8 masquerade",
        ] {
            run(&["nft", chain]);
        }
        run(&["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"]);
        assert_eq!(other.run(&["python3", "-c", CLIENT, "172.17.0.2", "80"]), "from one");
        assert_eq!(talk(Ipv4Addr::new(172, 17, 0, 1), 8080, b"").unwrap(), "from one");
        assert_eq!(talk(Ipv4Addr::LOCALHOST, 8080, b"").unwrap(), "from one");
        server.join().unwrap();
    });
}
