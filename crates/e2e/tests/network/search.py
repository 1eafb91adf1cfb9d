"""Which of the words are in which of the places: files (holes left out) or the memory of a process (mem:PID).

Usage: search.py WORD... -- PLACE...
"""
import os
import sys

PIECE = 16 << 20


def ranges(place):
    if place.startswith("mem:"):
        pid = place[4:]
        with open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                span, rights = line.split()[:2]
                if rights.startswith("r"):
                    start, end = (int(number, 16) for number in span.split("-"))
                    yield start, end
        return
    descriptor = os.open(place, os.O_RDONLY)
    end = os.lseek(descriptor, 0, os.SEEK_END)
    at = 0
    while at < end:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(descriptor, data, os.SEEK_HOLE)
        yield data, at
    os.close(descriptor)


def pieces(place, overlap):
    path = f"/proc/{place[4:]}/mem" if place.startswith("mem:") else place
    descriptor = os.open(path, os.O_RDONLY)
    for start, end in ranges(place):
        at, tail = start, b""
        while at < end:
            try:
                piece = os.pread(descriptor, min(PIECE, end - at), at)
            except OSError:
                break
            if not piece:
                break
            yield tail + piece
            tail = piece[-overlap:]
            at += len(piece)
    os.close(descriptor)


separator = sys.argv.index("--")
words = [word.encode() for word in sys.argv[1:separator]]
for place in sys.argv[separator + 1 :]:
    found = set()
    for piece in pieces(place, max(map(len, words))):
        found.update(word for word in words if word in piece)
    for word in sorted(found):
        print(place, word.decode())
print("end")
