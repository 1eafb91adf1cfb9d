"""HTTP in bytes, through the proxy, to a plain, a tunnelled and a terminated host."""
import base64
import os
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

PROXY = urlsplit(os.environ["HTTP_PROXY"])


# Read once: on an emulated processor forty of these take longer than a server waits for a greeting.
CONTEXT = ssl.create_default_context()
CONTEXT.set_alpn_protocols(["http/1.1"])


def connect(url):
    parts = urlsplit(url)
    sock = socket.create_connection((PROXY.hostname, PROXY.port), 30)
    if parts.scheme == "https":
        sock.sendall(f"CONNECT {parts.hostname}:443 HTTP/1.1\r\nHost: {parts.hostname}:443\r\n\r\n".encode())
        head = until(sock, b"\r\n\r\n")
        assert b" 200 " in head, head
        return CONTEXT.wrap_socket(sock, server_hostname=parts.hostname), ""
    return sock, f"http://{parts.hostname}"


def until(sock, end):
    data = b""
    while not data.endswith(end):
        byte = sock.recv(1)
        assert byte, data
        data += byte
    return data


def everything(sock):
    data = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece


def websocket(url):
    sock, prefix = connect(url)
    host = urlsplit(url).hostname
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {prefix}/upgrade HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    head = until(sock, b"\r\n\r\n")
    assert b" 101 " in head, head
    for number in range(20):
        frame = bytes([0x82, 0x84, 1, 2, 3, 4]) + os.urandom(4)
        sock.sendall(frame)
        assert until(sock, frame[-4:]) == frame
    sock.close()


def trailers(url):
    sock, prefix = connect(url)
    host = urlsplit(url).hostname
    sock.sendall(
        f"POST {prefix}/trailers HTTP/1.1\r\nHost: {host}\r\nTE: trailers\r\nConnection: close, TE\r\nTransfer-Encoding: chunked\r\n"
        f"Trailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 42\r\n\r\n".encode()
    )
    answer = everything(sock)
    assert b"x-sum" in answer and b"42" in answer, answer
    assert b"grpc-status: 0" in answer.lower(), answer


def events(url):
    sock, prefix = connect(url)
    sock.sendall(f"GET {prefix}/events HTTP/1.1\r\nHost: {urlsplit(url).hostname}\r\nConnection: close\r\n\r\n".encode())
    times = []
    data = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
        while data.count(b"data: event") > len(times):
            times.append(time.monotonic())
    assert len(times) == 3, data
    # They are 700 ms apart at the server; held back they would come together.
    assert times[1] - times[0] > 0.3 and times[2] - times[1] > 0.3, times


def expects(url):
    sock, prefix = connect(url)
    host = urlsplit(url).hostname
    sock.sendall(f"POST {prefix}/echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode())
    head = until(sock, b"\r\n\r\n")
    # A tunnelled server answers for itself, and this one may begin its answer before it wants the body.
    assert b" 100 " in head or "tunnel" in url and b" 200 " in head, head
    sock.sendall(b"body")
    answer = everything(sock)
    assert answer.endswith(b"body") or b"\r\nbody\r\n" in answer, answer


def keeps_alive(url):
    sock, prefix = connect(url)
    host = urlsplit(url).hostname
    for number in range(10):
        sock.sendall(f"GET {prefix}/bytes/{number + 1} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = until(sock, b"\r\n\r\n").lower()
        assert f"content-length: {number + 1}\r\n".encode() in head, head
        until(sock, b"x" * (number + 1))
    sock.sendall(f"GET {prefix}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert b"hello" in everything(sock)


def many(url):
    failures = []

    def one():
        try:
            keeps_alive(url)
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=one) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]


for url in ["http://public.test", "https://tunnel.test", "https://api.openai.com"]:
    for check in [websocket, trailers, events, expects, keeps_alive, many]:
        try:
            check(url)
        except Exception as error:
            raise SystemExit(f"{check.__name__} {url}: {error!r}")
        print(check.__name__, url, flush=True)
print("ok")
