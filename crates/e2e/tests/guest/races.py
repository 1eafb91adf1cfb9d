"""Tries to be led out of the workspace by exchanging directories and links while they are used."""

import ctypes, os, sys, threading, time

outside = sys.argv[1]
libc = ctypes.CDLL(None)
os.makedirs("real/below", exist_ok=True)
with open("real/private", "w") as file:
    file.write("harmless")
with open("real/below/private", "w") as file:
    file.write("harmless")
os.symlink(outside, "link")
os.symlink("../outside", "relative")
ended = time.monotonic() + 10
leaks = []


def exchange(one, two):
    while time.monotonic() < ended:
        libc.renameat2(-100, one.encode(), -100, two.encode(), 2)


def move_parent():
    while time.monotonic() < ended:
        try:
            os.rename("real/below", "moved")
            os.rename("moved", "real/below")
        except OSError:
            pass


def read(path):
    while time.monotonic() < ended:
        try:
            with open(path) as file:
                content = file.read()
            if "harmless" not in content:
                leaks.append((path, content))
            with open(os.path.dirname(path) + "/planted", "w") as file:
                file.write("attack")
        except OSError:
            pass


def read_from_directory():
    while time.monotonic() < ended:
        try:
            directory = os.open("real/below", os.O_RDONLY)
            for path in ["../private", "../../outside/private", "../../../outside/private", "../link/private"]:
                try:
                    descriptor = os.open(path, os.O_RDONLY, dir_fd=directory)
                    content = os.read(descriptor, 100)
                    os.close(descriptor)
                    if content and b"harmless" not in content:
                        leaks.append((path, content))
                except OSError:
                    pass
            os.close(directory)
        except OSError:
            pass


threads = [
    threading.Thread(target=exchange, args=("real", "link")),
    threading.Thread(target=exchange, args=("real", "relative")),
    threading.Thread(target=move_parent),
    threading.Thread(target=read, args=("real/private",)),
    threading.Thread(target=read, args=("link/private",)),
    threading.Thread(target=read, args=("real/below/private",)),
    threading.Thread(target=read_from_directory),
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(leaks[:5] or "nothing leaked")
