"""One side of a workspace, told what to do line by line. The same script runs on the host and in the guest.

  steps SEED COUNT   that many random changes below the current directory; answers how many succeeded
  change SEED        one random change; answers the paths that it touched
  look PATH          what is at a path: kind, mode, content
  tree               everything below the current directory
  wait PATH NAME     answers when inotify says that something happened to a name in a directory
"""

import ctypes, hashlib, json, os, random, select, stat, struct, sys

NAMES = ["a", "b", "c", "d", "e", "f", "ä", "with space"]


def look(path):
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return ["link", os.readlink(path)]
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            return ["directory", mode, sorted(os.listdir(path))]
        with open(path, "rb") as file:
            content = file.read()
        if status.st_size != len(content):
            return ["torn", status.st_size, len(content)]
        return ["file", mode, status.st_size, status.st_nlink, hashlib.sha1(content).hexdigest()]
    except OSError as error:
        return ["error", error.errno]


def tree():
    found = {}
    for directory, directories, files in os.walk(".", followlinks=False):
        for name in directories + files + ["."]:
            path = os.path.normpath(os.path.join(directory, name))
            found[path] = look(path)
    return found


def anywhere(rng):
    """A path that may or may not be there, at most three deep."""
    return "/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))


def change(rng):
    path, other = anywhere(rng), anywhere(rng)
    touched = [path, os.path.dirname(path) or "."]
    kind = rng.choices(
        ["write", "append", "truncate", "unlink", "mkdir", "rmdir", "rename", "symlink", "link", "chmod", "patch"],
        [20, 10, 6, 8, 12, 3, 12, 4, 5, 5, 8],
    )[0]
    data = rng.randbytes(rng.choice([0, 1, 100, 5000, 70_000]))
    if kind == "write":
        with open(path, "wb") as file:
            file.write(data)
    elif kind == "append":
        with open(path, "ab") as file:
            file.write(data)
    elif kind == "patch":
        with open(path, "r+b") as file:
            file.seek(rng.randint(0, 5000))
            file.write(data[:5000])
    elif kind == "truncate":
        os.truncate(path, rng.choice([0, 10, 5000]))
    elif kind == "unlink":
        os.unlink(path)
    elif kind == "mkdir":
        os.mkdir(path)
    elif kind == "rmdir":
        os.rmdir(path)
    elif kind == "rename":
        touched += [other, os.path.dirname(other) or "."]
        os.rename(path, other)
    elif kind == "symlink":
        os.symlink(rng.choice(NAMES), path)
    elif kind == "link":
        touched += [other, os.path.dirname(other) or "."]
        os.link(path, other, follow_symlinks=False)
    elif kind == "chmod":
        os.chmod(path, rng.choice([0o644, 0o600, 0o755, 0o700]))
    return touched


def steps(seed, count):
    rng = random.Random(seed)
    succeeded = 0
    for _ in range(count):
        try:
            change(rng)
            succeeded += 1
        except OSError:
            pass
    return succeeded


def one_change(seed):
    """Changes something; tries until one change succeeds."""
    rng = random.Random(seed)
    while True:
        try:
            return change(rng)
        except OSError:
            pass


def wait(path, wanted):
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(0)
    everything = 0xFFF
    assert libc.inotify_add_watch(descriptor, path.encode(), everything) >= 0, os.strerror(ctypes.get_errno())
    print("watching", flush=True)
    heard = []
    # What was heard of an earlier change may come late; it is not an answer to this one.
    while wanted not in heard:
        ready, _, _ = select.select([descriptor], [], [], 50)
        if not ready:
            return f"nothing happened but to {heard}"
        events, at = os.read(descriptor, 65536), 0
        while at < len(events):
            _, mask, _, length = struct.unpack_from("iIII", events, at)
            name = events[at + 16 : at + 16 + length].rstrip(b"\0").decode()
            at += 16 + length
            if name:
                heard.append(name)
    os.close(descriptor)
    return wanted


os.umask(0o022)
for line in sys.stdin:
    word, _, rest = line.rstrip("\n").partition(" ")
    if word == "steps":
        seed, count = rest.split()
        answer = steps(int(seed), int(count))
    elif word == "change":
        answer = one_change(int(rest))
    elif word == "look":
        answer = look(rest)
    elif word == "tree":
        answer = tree()
    elif word == "wait":
        answer = wait(*rest.rsplit(" ", 1))
    else:
        answer = "what?"
    print(json.dumps(answer, sort_keys=True), flush=True)
