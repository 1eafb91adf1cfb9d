"""Carries out attacks from inside: reads a JSON list of them, prints a JSON list of what came back.

An attack is {"name": …, "steps": […]}, and a step one of
["proxy"], ["open", HOST, PORT], ["send", TEXT], ["connect", AUTHORITY], ["tls", SNI or null, [ALPN…]], ["run", WORD…],
["flood", COUNT, TEXT]. Text is bytes in Latin-1. After the last step everything that comes is read.
"""
import concurrent.futures
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from urllib.parse import urlsplit

PROXY = urlsplit(os.environ["HTTP_PROXY"])
IDLE = 2.5
LONGEST = 20
# A program takes seconds to begin on an emulated processor that is busy with others.
PROGRAM = 60


class Refused(Exception):
    pass


def head(sock):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise Refused(data.decode("latin-1"))
        data += byte
    return data


def rest(sock):
    data = b""
    end = time.monotonic() + LONGEST
    sock.settimeout(IDLE)
    while time.monotonic() < end and len(data) < 1 << 20:
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            break
        if not piece:
            break
        data += piece
    return data


def carry_out(attack):
    answer, error = b"", ""
    start = time.monotonic()
    sock = None
    try:
        for word, *values in attack["steps"]:
            if word == "proxy":
                sock = socket.create_connection((PROXY.hostname, PROXY.port), LONGEST)
            elif word == "open":
                sock = socket.create_connection((values[0], values[1]), LONGEST)
            elif word == "send":
                sock.sendall(values[0].encode("latin-1"))
            elif word == "flood":
                for _ in range(values[0]):
                    sock.sendall(values[1].encode("latin-1"))
            elif word == "connect":
                sock.sendall(f"CONNECT {values[0]} HTTP/1.1\r\nHost: {values[0]}\r\n\r\n".encode())
                first = head(sock)
                answer += first
                if b" 200 " not in first.split(b"\r\n")[0]:
                    answer += rest(sock)
                    sock = None
                    break
            elif word == "tls":
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                context.set_alpn_protocols(values[1])
                sock = context.wrap_socket(sock, server_hostname=values[0])
            elif word == "run":
                done = subprocess.run(values, capture_output=True, timeout=PROGRAM)
                answer += done.stdout + done.stderr
                error = f"exit {done.returncode}"
        if sock:
            answer += rest(sock)
    except Refused as refused:
        answer += str(refused).encode("latin-1")
        error = "closed"
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return {
        "name": attack["name"],
        "answer": answer.decode("latin-1"),
        "error": error,
        "seconds": time.monotonic() - start,
    }


with open(sys.argv[1]) as file:
    attacks = json.load(file)
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    json.dump(list(pool.map(carry_out, attacks)), sys.stdout)
