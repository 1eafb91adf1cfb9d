"""What programs expect of a file system, one check a function. Runs in an empty directory, prints one line a failure.

The same script runs on the host's own file system first: a check that fails there is a fault of the check.
"""

import ctypes, errno, fcntl, mmap, os, signal, socket, stat, subprocess, sys, time, traceback


def write(name, data=b"x"):
    with open(name, "wb") as file:
        file.write(data)


def read(name):
    with open(name, "rb") as file:
        return file.read()


def refused(number, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except OSError as error:
        assert error.errno == number, f"{error}, not {errno.errorcode[number]}"
        return
    raise AssertionError(f"{errno.errorcode[number]} expected")


def check_create_write_read():
    write("file", b"hello")
    assert read("file") == b"hello"
    assert os.stat("file").st_size == 5
    os.unlink("file")
    refused(errno.ENOENT, os.stat, "file")


def check_exclusive_creation():
    os.close(os.open("file", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    refused(errno.EEXIST, os.open, "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def check_create_without_permission_bits():
    descriptor = os.open("locked", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
    os.write(descriptor, b"written all the same")
    os.close(descriptor)
    assert read("locked") == b"written all the same"
    assert stat.S_IMODE(os.stat("locked").st_mode) == 0o400


def check_rename_over_an_open_file():
    write("old", b"old")
    write("new", b"new")
    with open("old", "rb") as file:
        os.rename("new", "old")
        assert file.read() == b"old"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert read("old") == b"new"


def check_rename_of_directories():
    os.makedirs("a/b")
    os.mkdir("empty")
    write("a/b/file", b"deep")
    os.rename("a", "empty")
    assert read("empty/b/file") == b"deep"
    os.mkdir("full")
    write("full/file")
    refused(errno.ENOTEMPTY, os.rename, "empty", "full")
    refused(errno.EINVAL, os.rename, "full", "full/below")


def check_rename_noreplace_and_exchange():
    libc = ctypes.CDLL(None, use_errno=True)
    write("one", b"1")
    write("two", b"2")
    at = -100
    assert libc.renameat2(at, b"one", at, b"two", 1) == -1 and ctypes.get_errno() == errno.EEXIST
    assert libc.renameat2(at, b"one", at, b"two", 2) == 0, os.strerror(ctypes.get_errno())
    assert (read("one"), read("two")) == (b"2", b"1")


def check_unlinked_open_file():
    with open("file", "w+b") as file:
        file.write(b"still here")
        file.flush()
        os.unlink("file")
        refused(errno.ENOENT, os.stat, "file")
        file.seek(0)
        assert file.read() == b"still here"
        file.write(b" and longer")
        file.flush()
        os.ftruncate(file.fileno(), 5)
        assert os.fstat(file.fileno()).st_size == 5
        os.fchmod(file.fileno(), 0o600)


def check_open_directory_removed():
    os.mkdir("directory")
    descriptor = os.open("directory", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir("directory")
    assert os.listdir(descriptor) == []
    os.close(descriptor)


def check_append():
    with open("file", "ab", buffering=0) as one, open("file", "ab", buffering=0) as two:
        for _ in range(50):
            one.write(b"1")
            two.write(b"2")
    assert read("file") == b"12" * 50


def check_truncate():
    write("file", b"0123456789")
    os.truncate("file", 4)
    assert read("file") == b"0123"
    os.truncate("file", 8)
    assert read("file") == b"0123\0\0\0\0"
    with open("file", "wb"):
        pass
    assert os.stat("file").st_size == 0


def check_sparse():
    with open("file", "wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    status = os.stat("file")
    assert status.st_size == (64 << 20) + 3
    assert status.st_blocks * 512 < 1 << 20, status.st_blocks
    with open("file", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) >= (63 << 20)
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0


def check_large_offsets():
    place = (5 << 30) + 17
    with open("file", "wb") as file:
        file.seek(place)
        file.write(b"far")
    with open("file", "rb") as file:
        file.seek(place)
        assert file.read() == b"far"
    assert os.stat("file").st_size == place + 3
    os.unlink("file")


def check_fallocate():
    with open("file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        assert os.fstat(file.fileno()).st_size == 1 << 20


def check_punch_hole():
    libc = ctypes.CDLL(None, use_errno=True)
    write("file", b"x" * (256 << 10))
    with open("file", "r+b") as file:
        keep_size, punch_hole = 1, 2
        offset, length = ctypes.c_long(64 << 10), ctypes.c_long(64 << 10)
        assert libc.fallocate(file.fileno(), keep_size | punch_hole, offset, length) == 0, os.strerror(ctypes.get_errno())
    data = read("file")
    assert data[64 << 10 : 128 << 10] == bytes(64 << 10) and data[0] == data[-1] == ord("x")


def check_modes_and_umask():
    old = os.umask(0o027)
    try:
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o777))
        os.mkdir("directory", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat("file").st_mode) == 0o750
    assert stat.S_IMODE(os.stat("directory").st_mode) == 0o750
    os.chmod("file", 0o641)
    assert stat.S_IMODE(os.stat("file").st_mode) == 0o641


def check_set_id_bits_are_dropped():
    write("file")
    os.chmod("file", 0o6755)
    assert stat.S_IMODE(os.stat("file").st_mode) & 0o4000 == 0o4000
    with open("file", "ab") as file:
        file.write(b"changed")
    assert stat.S_IMODE(os.stat("file").st_mode) == 0o755, oct(os.stat("file").st_mode)


def check_times_in_nanoseconds():
    write("file")
    os.utime("file", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    status = os.stat("file")
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321)
    before = time.time_ns()
    write("file", b"again")
    assert abs(os.stat("file").st_mtime_ns - before) < 5_000_000_000


def check_symbolic_links():
    write("file", b"target")
    os.symlink("file", "link")
    assert os.readlink("link") == "file" and read("link") == b"target"
    os.symlink("nowhere", "dangling")
    refused(errno.ENOENT, open, "dangling")
    os.symlink("loop", "loop")
    refused(errno.ELOOP, open, "loop")
    os.symlink("x" * 4000, "long")
    assert os.readlink("long") == "x" * 4000
    write("through-dangling-target-missing")
    os.symlink("made", "maker")
    write("maker", b"made through a link")
    assert read("made") == b"made through a link"


def check_hard_links():
    write("one", b"1")
    os.link("one", "two")
    assert os.stat("one").st_ino == os.stat("two").st_ino and os.stat("two").st_nlink == 2
    with open("two", "ab") as file:
        file.write(b"2")
    assert read("one") == b"12"
    os.unlink("one")
    assert read("two") == b"12" and os.stat("two").st_nlink == 1


def check_inode_numbers_are_stable():
    write("file")
    number = os.stat("file").st_ino
    os.rename("file", "other")
    assert os.stat("other").st_ino == number
    for _ in range(3):
        assert [entry.inode() for entry in os.scandir(".") if entry.name == "other"] == [number]


def check_extended_attributes():
    write("file")
    os.setxattr("file", "user.one", b"1")
    os.setxattr("file", "user.two", b"\0binary\xff")
    assert sorted(os.listxattr("file")) == ["user.one", "user.two"], os.listxattr("file")
    assert os.getxattr("file", "user.two") == b"\0binary\xff"
    os.removexattr("file", "user.one")
    refused(errno.ENODATA, os.getxattr, "file", "user.one")


LOCK = """
import errno, fcntl, sys
file = open('file', 'r+b')
try:
    fcntl.{call}(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error:
    sys.exit(3 if error.errno in (errno.EAGAIN, errno.EACCES) else 4)
"""


def locks(call):
    write("file", b"locked")
    other = [sys.executable, "-c", LOCK.format(call=call)]
    with open("file", "r+b") as file:
        getattr(fcntl, call)(file, fcntl.LOCK_EX)
        assert subprocess.call(other) == 3
        getattr(fcntl, call)(file, fcntl.LOCK_UN)
        assert subprocess.call(other) == 0


def check_flock():
    locks("flock")


def check_record_locks():
    locks("lockf")


def check_mmap_shared():
    write("file", b"a" * 8192)
    with open("file", "r+b") as file, mmap.mmap(file.fileno(), 8192) as shared:
        shared[0:5] = b"hello"
        shared[4096:4101] = b"world"
        shared.flush()
        assert read("file")[:5] == b"hello"
        file.seek(8000)
        file.write(b"tail")
        file.flush()
        assert shared[8000:8004] == b"tail"
    assert read("file")[4096:4101] == b"world"


def check_mmap_private():
    write("file", b"a" * 4096)
    with open("file", "r+b") as file, mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_COPY) as private:
        private[0:5] = b"never"
        assert private[0:5] == b"never"
    assert read("file") == b"a" * 4096


def check_direct():
    buffer = mmap.mmap(-1, 4096)
    buffer.write(b"d" * 4096)
    try:
        descriptor = os.open("file", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        assert error.errno == errno.EINVAL
        return
    os.write(descriptor, buffer)
    os.close(descriptor)
    assert read("file") == b"d" * 4096


def check_positioned_and_vectored():
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR)
    os.pwritev(descriptor, [b"one", b"two"], 10)
    assert os.pread(descriptor, 6, 10) == b"onetwo"
    assert os.pread(descriptor, 10, 0) == bytes(10)
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)


def check_large_writes():
    data = bytes(range(256)) * 40_000
    write("file", data)
    assert read("file") == data


def check_copy_file_range():
    write("one", b"copied" * 1000)
    with open("one", "rb") as source, open("two", "wb") as target:
        left = 6000
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    assert read("two") == b"copied" * 1000


def check_names_are_bytes():
    names = [b"with space", "ä ö 漢字 🦀".encode(), b"new\nline", b"\xff\xfe\x01", b"-dash", b'"quote\'', b"back\\slash", b"n" * 255]
    for name in names:
        write(name, name)
    assert sorted(os.listdir(b".")) == sorted(names)
    for name in names:
        assert read(name) == name
    refused(errno.ENAMETOOLONG, write, b"n" * 256)


def check_fifo():
    os.mkfifo("fifo")
    child = os.fork()
    if child == 0:
        with open("fifo", "wb") as file:
            file.write(b"through")
        os._exit(0)
    with open("fifo", "rb") as file:
        assert file.read() == b"through"
    os.waitpid(child, 0)
    # Opening one that nobody writes blocks its opener alone.
    child = os.fork()
    if child == 0:
        open("fifo", "rb")
        os._exit(0)
    write("file", b"others go on")
    assert read("file") == b"others go on"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def check_unix_socket():
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("socket")
    peer, _ = server.accept()
    client.sendall(b"hello")
    assert peer.recv(5) == b"hello"
    assert stat.S_ISSOCK(os.stat("socket").st_mode)
    os.unlink("socket")


def check_directory_reading_while_it_changes():
    for number in range(500):
        write(f"file{number}")
    seen = 0
    for entry in os.scandir("."):
        os.unlink(entry.name)
        seen += 1
    assert seen == 500 and os.listdir(".") == [], (seen, os.listdir("."))


def check_directory_errors():
    write("file")
    refused(errno.ENOTDIR, os.listdir, "file")
    refused(errno.ENOTDIR, os.stat, "file/below")
    os.mkdir("directory")
    refused(errno.EEXIST, os.mkdir, "directory")
    write("directory/file")
    refused(errno.ENOTEMPTY, os.rmdir, "directory")
    refused(errno.EISDIR, open, "directory", "wb")


def check_deep_paths():
    start = os.open(".", os.O_RDONLY)
    try:
        for _ in range(60):
            os.mkdir("d" * 60)
            os.chdir("d" * 60)
        write("file", b"deep")
        assert read("file") == b"deep"
    finally:
        os.fchdir(start)
        os.close(start)


def check_access():
    write("file")
    os.chmod("file", 0o500)
    assert os.access("file", os.R_OK | os.X_OK)
    os.chmod("file", 0o400)
    assert not os.access("file", os.X_OK)


def check_execution():
    write("script", b"#!/bin/sh\necho ran $1\n")
    refused(errno.EACCES, subprocess.call, ["./script"])
    os.chmod("script", 0o755)
    assert subprocess.check_output(["./script", "well"]) == b"ran well\n"


def check_file_system_size():
    status = os.statvfs(".")
    assert status.f_blocks > 0 and status.f_bavail > 0 and status.f_namemax == 255


def check_temporary_file():
    try:
        descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR)
    except OSError as error:
        assert error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL), error
        return
    os.write(descriptor, b"nameless")
    os.close(descriptor)
    assert os.listdir(".") == []


def check_open_file_survives_renamed_parent():
    os.makedirs("parent/child")
    with open("parent/child/file", "wb") as file:
        os.rename("parent", "moved")
        file.write(b"after the move")
    assert read("moved/child/file") == b"after the move"


def main():
    checks = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
    failed = 0
    for name, check in checks.items():
        os.mkdir(name)
        home = os.open(".", os.O_RDONLY)
        os.chdir(name)
        try:
            check()
        except Exception as error:
            failed += 1
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            print(f"{name}: {type(error).__name__} {error} (line {line})")
        os.fchdir(home)
        os.close(home)
        subprocess.call(["rm", "-rf", name])
    print(f"{len(checks)} checks, {failed} failed")


main()
