//! The attacks. Whatever must not arrive at a server has the word `forbidden` in it.

use serde_json::json;

use crate::attack::{Attack, absolute, captured, connect, get, proxy, request, run, tls};

/// A host whose TLS is terminated, because a credential belongs to it.
const TERMINATED: &str = "api.openai.com";

/// All of them.
pub(crate) fn attacks() -> Vec<Attack> {
    [addresses(), names(), fronting(), other_protocols(), framing(), heads()]
        .into_iter()
        .flatten()
        .collect()
}

/// Private addresses in every disguise.
fn addresses() -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (name, host) in [
        ("private", "10.0.0.5"),
        ("private, trailing dot", "10.0.0.5."),
        ("private, hexadecimal", "0x0a000005"),
        ("private, one number", "167772165"),
        ("private, octal", "012.0.0.5"),
        ("private, short", "10.5"),
        ("private, mixed forms", "0xa.0.5"),
        ("private, mapped", "[::ffff:10.0.0.5]"),
        ("private, mapped in hexadecimal", "[::ffff:a00:5]"),
        ("private, compatible", "[::10.0.0.5]"),
        ("private, NAT64", "[64:ff9b::a00:5]"),
        ("private, local NAT64", "[64:ff9b:1::a00:5]"),
        ("private, 6to4", "[2002:a00:5::]"),
        ("private, translated", "[::ffff:0:a00:5]"),
        ("this host", "127.0.0.1:8080"),
        ("this host, short", "127.1:8080"),
        ("this host, one number", "2130706433:8080"),
        ("this host, another of its addresses", "127.0.0.53:8080"),
        ("this host, IPv6", "[::1]:8080"),
        ("this host, mapped", "[::ffff:127.0.0.1]:8080"),
        ("this host, zero", "0.0.0.0:8080"),
        ("this host, unspecified", "[::]:8080"),
        ("this host, by name", "localhost:8080"),
        ("this host, by name in capitals", "LOCALHOST.:8080"),
        ("this host, below its name", "x.localhost:8080"),
        ("this host, as the sandbox calls it", "host.docker.internal:8080"),
        ("metadata", "169.254.169.254"),
        ("metadata, one number", "2852039166"),
        ("metadata, octal", "0251.0376.0251.0376"),
        ("metadata, by name", "metadata.google.internal"),
        ("metadata, by name in capitals", "METADATA.google.internal."),
        ("link-local with a zone", "[fe80::1%25lo]"),
        ("unique local", "[fd00::5]"),
        ("a name that is private", "private.test"),
        ("a name that is this host", "loop.test:8080"),
        ("a name that is mapped", "mapped.test"),
        ("a name that is NAT64", "nat64.test"),
        ("a name that is 6to4", "sixtofour.test"),
        ("a name with one private address", "mixed.test"),
        ("a name that is private on the second question", "rebind.test"),
        ("a name that is private on the second question, twice", "rebind.test"),
    ] {
        attacks.push(get(name, &format!("http://{host}/forbidden")));
    }
    attacks.push(
        connect("CONNECT to private", "10.0.0.5:80", &request("10.0.0.5", "", ""))
            .logged("10.0.0.5"),
    );
    attacks.push(connect("CONNECT to this host", "127.0.0.1:8080", &request("x", "", "")));
    attacks.push(connect("CONNECT to mapped", "[::ffff:10.0.0.5]:80", &request("x", "", "")));
    attacks.push(
        connect("CONNECT to a private name", "private.test:80", &request("private.test", "", ""))
            .logged("private.test"),
    );
    attacks.push(connect(
        "CONNECT to the proxy itself",
        "host.docker.internal:3128",
        "GET http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\n\r\n",
    ));
    attacks.push(get("the proxy by itself", "http://gateway.docker.internal:3128/forbidden"));
    attacks.push(
        captured("captured to private", "10.0.0.5", 80, &request("10.0.0.5", "", ""))
            .logged("10.0.0.5"),
    );
    attacks.push(
        captured("captured to metadata", "169.254.169.254", 80, &request("public.test", "", ""))
            .logged("169.254.169.254"),
    );
    attacks.push(
        captured(
            "captured to a private name",
            "private.test",
            80,
            &request("private.test", "", ""),
        )
        .logged("private.test"),
    );
    attacks.push(captured(
        "captured rebinding",
        "rebind.test",
        80,
        &request("rebind.test", "", ""),
    ));
    attacks
}

/// Blocked names in every disguise.
fn names() -> Vec<Attack> {
    let mut attacks = Vec::new();
    for (name, host) in [
        ("blocked", "blocked.test"),
        ("blocked, trailing dot", "blocked.test."),
        ("blocked, capitals", "BloCKed.TEST"),
        ("blocked, below", "a.b.blocked.test"),
        ("blocked, percent-encoded", "%62locked.test"),
        ("blocked, NUL behind", "blocked.test%00.public.test"),
        ("blocked, raw NUL behind", "blocked.test\0.public.test"),
        ("blocked, wide letters", "\u{ef}\u{bd}\u{82}locked.test"),
        ("blocked, wide dot", "blocked\u{e3}\u{80}\u{82}test"),
        ("blocked, tab behind", "blocked.test\t"),
        ("blocked, behind a user", "public.test@blocked.test"),
        ("private, behind a user", "public.test:80@10.0.0.5"),
        ("private, behind a backslash", "public.test\\@10.0.0.5"),
        ("an empty label", "public..test"),
        ("no host at all", ""),
        ("a port out of range", "public.test:65616"),
        ("a port with a sign", "public.test:+80"),
        ("port 0", "public.test:0"),
    ] {
        attacks.push(get(name, &format!("http://{host}/forbidden")));
    }
    attacks.push(connect("CONNECT to blocked", "blocked.test:443", "").logged("blocked.test"));
    attacks.push(connect("CONNECT without a port", "public.test", ""));
    attacks.push(connect("CONNECT to a URL", "http://public.test/", ""));
    attacks.push(
        captured("captured to blocked", "blocked.test", 80, &request("blocked.test", "", ""))
            .logged("blocked.test"),
    );
    attacks.push(captured(
        "captured to another case of blocked",
        "BLOCKED.test",
        80,
        &request("public.test", "", ""),
    ));
    attacks
}

/// One name to be let through, another to be served.
fn fronting() -> Vec<Attack> {
    let blocked = "POST /forbidden HTTP/1.1\r\nHost: blocked.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    vec![
        proxy("absolute form against Host", "GET http://public.test/forbidden HTTP/1.1\r\nHost: blocked.test\r\n\r\n"),
        tls("tunnel, another name in TLS", "public.test:443", Some("blocked.test"), blocked),
        tls("tunnel, another allowed name in TLS", "public.test:443", Some("other.test"), blocked),
        tls("tunnel, no name in TLS", "public.test:443", None, blocked),
        tls("tunnel to an address, a blocked name in TLS", "203.0.113.10:443", Some("blocked.test"), blocked).logged("blocked.test"),
        tls("terminated, another Host", "api.openai.com:443", Some(TERMINATED), blocked),
        tls("terminated, another name in TLS", "api.openai.com:443", Some("blocked.test"), blocked),
        tls("terminated, no name in TLS", "api.openai.com:443", None, blocked),
        tls("tunnel, the name of a terminated host in TLS", "public.test:443", Some(TERMINATED), blocked),
        tls("terminated, absolute form to elsewhere", "api.openai.com:443", Some(TERMINATED), "GET http://blocked.test/forbidden HTTP/1.1\r\nHost: api.openai.com\r\n\r\n"),
        tls("terminated, second request to another Host", "api.openai.com:443", Some(TERMINATED), format!("GET /first HTTP/1.1\r\nHost: api.openai.com\r\n\r\n{blocked}")),
        run("terminated by HTTP/2, another authority", &["curl", "-s", "--http2", "-H", "Host: blocked.test", "https://api.openai.com/forbidden"]),
        run("terminated by HTTP/2, coalesced", &["curl", "-s", "--http2", "https://api.openai.com/first", "--next", "-s", "-H", "Host: github.com", "https://api.openai.com/forbidden"]),
        connect("plain in a tunnel, another Host", "public.test:80", blocked),
        connect("plain in a tunnel to an address, a blocked Host", "203.0.113.10:80", blocked),
        captured("captured, another Host", "public.test", 80, blocked),
        captured("captured by address, a blocked Host", "203.0.113.10", 80, blocked).logged("blocked.test"),
        Attack {
            name: "captured, another name in TLS",
            steps: json!([["open", "public.test", 443], ["tls", "blocked.test", ["http/1.1"]], ["send", blocked]]),
            logged: None,
        },
        Attack {
            name: "captured by address, a blocked name in TLS",
            steps: json!([["open", "203.0.113.10", 443], ["tls", "blocked.test", ["http/1.1"]], ["send", blocked]]),
            logged: Some("blocked.test"),
        },
        proxy("a second request on one connection", "GET http://public.test/first HTTP/1.1\r\nHost: public.test\r\n\r\nGET http://blocked.test/forbidden HTTP/1.1\r\nHost: blocked.test\r\n\r\n").logged("blocked.test"),
    ]
}

/// What is no HTTP.
fn other_protocols() -> Vec<Attack> {
    vec![
        connect("raw bytes in a tunnel", "public.test:7", "forbidden\n"),
        connect("SSH in a tunnel", "public.test:7", "SSH-2.0-forbidden\r\n"),
        connect(
            "CONNECT in CONNECT",
            "public.test:80",
            "CONNECT blocked.test:443 HTTP/1.1\r\nHost: blocked.test:443\r\n\r\nforbidden",
        ),
        tls(
            "CONNECT within TLS",
            "api.openai.com:443",
            Some(TERMINATED),
            "CONNECT blocked.test:80 HTTP/1.1\r\nHost: blocked.test:80\r\n\r\nforbidden",
        ),
        connect("broken TLS", "public.test:443", "\u{16}\u{3}\u{1}\u{ff}\u{ff}forbidden"),
        connect(
            "half of a TLS record, then raw",
            "public.test:7",
            "\u{16}\u{3}\u{1}\0\u{5}\u{1}\0\0\u{1}\0forbidden",
        ),
        captured("raw bytes, captured", "public.test", 7, "forbidden\n"),
        captured("raw bytes to an address, captured", "203.0.113.10", 7, "forbidden\n"),
        proxy("SOCKS 5", "\u{5}\u{1}\0forbidden"),
        proxy("SOCKS 4", "\u{4}\u{1}\0\u{50}\u{cb}\0\u{71}\u{a}forbidden\0"),
        proxy("HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0"),
        proxy("HTTP/0.9", "GET http://public.test/forbidden\r\n"),
        proxy(
            "HTTP/3 in name",
            "GET http://public.test/forbidden HTTP/3.0\r\nHost: public.test\r\n\r\n",
        ),
        proxy(
            "another scheme",
            "GET ftp://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\n\r\n",
        ),
        proxy("a file", "GET file:///etc/passwd HTTP/1.1\r\nHost: public.test\r\n\r\n"),
        proxy(
            "HTTPS in absolute form",
            "GET https://blocked.test/forbidden HTTP/1.1\r\nHost: blocked.test\r\n\r\n",
        ),
    ]
}

/// Requests whose end two readers could see in different places: plain, and within TLS.
fn framing() -> Vec<Attack> {
    let smuggled = "POST /forbidden HTTP/1.1\r\nHost: blocked.test\r\n\r\n";
    let shapes = [
        (
            "length and chunked",
            format!("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\u{2}0\r\n\r\n{smuggled}"),
        ),
        (
            "chunked and length",
            format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\u{2}0\r\n\r\n{smuggled}"),
        ),
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: 50\r\n\u{2}{smuggled}")),
        ("a list of lengths", format!("Content-Length: 0, 50\r\n\u{2}{smuggled}")),
        ("a length with a sign", format!("Content-Length: +0\r\n\u{2}{smuggled}")),
        ("a negative length", format!("Content-Length: -1\r\n\u{2}{smuggled}")),
        ("a hexadecimal length", format!("Content-Length: 0x5\r\n\u{2}{smuggled}")),
        (
            "a length beyond all numbers",
            format!("Content-Length: 99999999999999999999\r\n\u{2}{smuggled}"),
        ),
        ("an unknown coding", format!("Transfer-Encoding: xchunked\r\n\u{2}0\r\n\r\n{smuggled}")),
        (
            "chunked twice",
            format!(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\u{2}0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "chunked, then identity",
            format!("Transfer-Encoding: chunked, identity\r\n\u{2}0\r\n\r\n{smuggled}"),
        ),
        (
            "a space before the colon",
            format!("Transfer-Encoding : chunked\r\n\u{2}0\r\n\r\n{smuggled}"),
        ),
        (
            "a vertical tab in the coding",
            format!("Transfer-Encoding: \u{b}chunked\r\n\u{2}0\r\n\r\n{smuggled}"),
        ),
        ("a folded line", format!("X-Folded: a\r\n Content-Length: 50\r\n\u{2}{smuggled}")),
        ("a bare line feed", format!("X-Bare: a\nContent-Length: 50\r\n\u{2}{smuggled}")),
        ("a bare carriage return", format!("X-Bare: a\rContent-Length: 50\r\n\u{2}{smuggled}")),
        ("a NUL in a field", format!("X-Nul: a\0b\r\n\u{2}{smuggled}")),
        ("a second Host", format!("Host: blocked.test\r\n\u{2}{smuggled}")),
        (
            "a chunk size that is none",
            format!("Transfer-Encoding: chunked\r\n\u{2}zz\r\n{smuggled}"),
        ),
        (
            "a chunk size beyond all numbers",
            format!("Transfer-Encoding: chunked\r\n\u{2}fffffffffffffffff\r\n{smuggled}"),
        ),
        (
            "a chunk that ends too late",
            format!("Transfer-Encoding: chunked\r\n\u{2}3\r\nabcdef\r\n0\r\n\r\n{smuggled}"),
        ),
        (
            "a chunk with a bare line feed",
            format!("Transfer-Encoding: chunked\r\n\u{2}3\nabc\n0\n\n{smuggled}"),
        ),
    ];
    let mut attacks = Vec::new();
    for (name, shape) in shapes {
        // This control character stands where the head ends.
        let (lines, body) = shape.split_once('\u{2}').unwrap_or((&shape, ""));
        let plain: &'static str = format!("plain: {name}").leak();
        let within: &'static str = format!("within TLS: {name}").leak();
        attacks.push(proxy(plain, absolute("public.test", lines, body)));
        attacks.push(tls(
            within,
            "api.openai.com:443",
            Some(TERMINATED),
            request(TERMINATED, lines, body),
        ));
    }
    attacks
}

/// Heads that no client writes.
fn heads() -> Vec<Attack> {
    let long = "x".repeat(300_000);
    let many: String = (0..3000).map(|number| format!("X-{number}: y\r\n")).collect();
    vec![
        proxy("a line feed alone", "GET http://public.test/forbidden HTTP/1.1\nHost: public.test\n\n"),
        proxy("an empty line first", "\r\n\r\nGET http://blocked.test/forbidden HTTP/1.1\r\nHost: blocked.test\r\n\r\n"),
        proxy("no Host", "GET /forbidden HTTP/1.1\r\n\r\n"),
        proxy("an empty Host", "GET http://public.test/forbidden HTTP/1.1\r\nHost:\r\n\r\n"),
        proxy("two spaces", "GET  http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\n\r\n"),
        proxy("a space in the target", "GET http://public.test/forbidden x HTTP/1.1\r\nHost: public.test\r\n\r\n"),
        proxy("a control character in the target", "GET http://public.test/forbidden\u{1}\u{1b}[31m HTTP/1.1\r\nHost: public.test\r\n\r\n"),
        proxy("a method that is none", "G(T http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\n\r\n"),
        proxy("a field without a name", "GET http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\n: x\r\n\r\n"),
        proxy("a field without a colon", "GET http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\nX\r\n\r\n"),
        proxy("a space in a field's name", "GET http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\nX Y: z\r\n\r\n"),
        proxy("a target without end", format!("GET http://public.test/forbidden{long} HTTP/1.1\r\nHost: public.test\r\n\r\n")),
        proxy("a field without end", format!("GET http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\nX: {long}\r\n\r\n")),
        proxy("fields without end", format!("GET http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\n{many}\r\n")),
        proxy("TRACE", "TRACE http://public.test/forbidden HTTP/1.1\r\nHost: public.test\r\n\r\n"),
        tls("TRACE where a key is put in", "api.openai.com:443", Some(TERMINATED), "TRACE /forbidden HTTP/1.1\r\nHost: api.openai.com\r\n\r\n"),
        tls("the asterisk", "api.openai.com:443", Some(TERMINATED), "GET * HTTP/1.1\r\nHost: api.openai.com\r\n\r\n"),
        proxy("an entry forged in the log, by the target", "GET http://blocked.test/%0a{\"action\":\"allowed\",\"host\":\"forged.test\"}%1b[2J HTTP/1.1\r\nHost: blocked.test\r\n\r\n").logged("blocked.test"),
        proxy("an entry forged in the log, by the method", "GET\"}\n{\"action\":\"allowed\" http://blocked.test/forbidden HTTP/1.1\r\nHost: blocked.test\r\n\r\n"),
        connect("an entry forged in the log, by the name", "blocked.test\",\"action\":\"allowed:443", ""),
    ]
}
