"""Every way out but the proxy. Prints a line for each: NAME SECONDS OUTCOME."""
import socket
import struct
import subprocess
import time

OUTSIDE = "203.0.113.10"
OUTSIDE_6 = "2001:db8::10"
TIMEOUT = 10


def attempt(name, action):
    start = time.monotonic()
    try:
        outcome = action()
        if outcome and outcome.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 502 ")):
            raise PermissionError("the proxy answered that it will not")
        outcome = f"succeeded {outcome!r}" if outcome else "failed without an answer"
    except Exception as error:
        outcome = f"failed {type(error).__name__} {error}"
    print(name, round(time.monotonic() - start, 2), outcome.replace("\n", " "), flush=True)


def udp(address, port, payload=b"hello", protocol=0, timeout=TIMEOUT):
    def action():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
            sock.settimeout(timeout)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.connect((address, port))
            sock.send(payload)
            return sock.recv(1500)

    return action


def tcp(address, port, payload=b"hello\n"):
    def action():
        with socket.create_connection((address, port), TIMEOUT) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(payload)
            return sock.recv(1500)

    return action


# The kernel tells nothing of a forwarded packet whose checksum is wrong.
VALID = {1: b"\x08\x00\xf7\xff\x00\x00\x00\x00", 2: b"\x11\x00\xee\xff\x00\x00\x00\x00"}


def raw(protocol, address=OUTSIDE):
    def action():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sock:
            sock.settimeout(TIMEOUT)
            # Connected: what ICMP says of it is an error of the socket.
            sock.connect((address, 0))
            sock.send(VALID.get(protocol, b"x" * 32))
            return sock.recv(1500)

    return action


def run(*words):
    def action():
        done = subprocess.run(words, capture_output=True, timeout=TIMEOUT + 5)
        return done.stdout if done.returncode == 0 else None

    return action


def frame():
    """Past every rule, to the interface itself."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("egress", 0x800))
        return b"sent %d" % sock.send(bytes(60))


def asked_outside(action):
    """The guest's own resolver answers: what it makes up by itself (198.18.0.0/15) came from nobody."""

    def outside():
        answer = action()
        made_up = [b"\xc6\x12", b"\xc6\x13", b"198.18.", b"198.19."]
        if answer and any(address in answer for address in made_up):
            raise RuntimeError("answered by the guest itself")
        return answer

    return outside


def query(name, kind=1):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\0" + struct.pack(">HH", kind, 1)


for server in ["8.8.8.8", OUTSIDE, "127.0.0.53", "10.255.255.53"]:
    if server != "127.0.0.53":
        attempt(f"dns-udp-{server}", udp(server, 53, query("smuggled-1.test")))
    message = struct.pack(">H", 33) + query("smuggled-2.test")
    attempt(f"dns-tcp-{server}", tcp(server, 53, message))
attempt("dig", run("dig", "+time=10", "+tries=1", "@8.8.8.8", "smuggled-3.test"))
for kind in ["TXT", "NULL", "MX", "SRV", "ANY"]:
    dig = run("dig", "+short", "+time=5", "+tries=1", "smuggled-4.test", kind)
    attempt(f"dig-{kind}", asked_outside(dig))
for port in [123, 443, 4500, 5353, 9999]:
    attempt(f"udp-{port}", udp(OUTSIDE, port))
attempt("udp-6", udp(OUTSIDE_6, 443))
# A container's link has these of its own: nobody there says that nobody listens.
attempt("link-mdns", udp("224.0.0.251", 5353, timeout=2))
attempt("link-ssdp", udp("239.255.255.250", 1900, timeout=2))
attempt("link-mdns-6", udp("ff02::fb", 5353, timeout=2))
attempt("link-broadcast", udp("255.255.255.255", 67, timeout=2))
attempt("frame", frame)
attempt("udp-lite", udp(OUTSIDE, 443, protocol=136))
for address in [OUTSIDE, OUTSIDE_6, "8.8.8.8"]:
    attempt(f"ping-{address}", run("ping", "-c", "1", "-W", "3", address))
for protocol in [1, 2, 47, 50, 132]:
    attempt(f"raw-ip-{protocol}", raw(protocol))
for port in [7, 22, 25, 8081]:
    attempt(f"raw-tcp-{port}", tcp(OUTSIDE, port))
attempt("raw-tcp-6", tcp(OUTSIDE_6, 7))
for address in ["10.0.0.5", "192.168.1.5", "169.254.169.254", "fd00::5"]:
    attempt(f"private-{address}", tcp(address, 80, b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"))
for port in [7, 22, 80, 8080, 9999]:
    attempt(f"host-{port}", tcp("host.docker.internal", port))
attempt("neighbour", tcp("neighbour", 9999, b"GET / HTTP/1.0\r\n\r\n"))
attempt("sctp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect((OUTSIDE, 80)) or b"connected")
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 1024)) or b"connected")
