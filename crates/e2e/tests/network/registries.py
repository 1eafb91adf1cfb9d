"""Package registries of one package each, as files that a plain web server serves. Usage: registries.py DIRECTORY"""
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = sys.argv[1]


def put(path, content):
    path = os.path.join(ROOT, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def python():
    files = {
        "hutchdemo.py": "print('python works')\n",
        "hutchdemo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hutchdemo\nVersion: 1.0\n",
        "hutchdemo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files["hutchdemo-1.0.dist-info/RECORD"] = record + "hutchdemo-1.0.dist-info/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    put("wheels/hutchdemo-1.0-py3-none-any.whl", buffer.getvalue())
    put("simple/hutchdemo/index.html", '<a href="/wheels/hutchdemo-1.0-py3-none-any.whl">hutchdemo-1.0-py3-none-any.whl</a>')


def node():
    package = {"name": "hutchdemo-node", "version": "1.0.0", "main": "index.js"}
    put("tarballs/hutchdemo-node.tgz", archive({
        "package/package.json": json.dumps(package),
        "package/index.js": "console.log('node works')\n",
    }))
    package["dist"] = {"tarball": "https://tarballs.test/tarballs/hutchdemo-node.tgz"}
    put("hutchdemo-node", json.dumps({"name": "hutchdemo-node", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": package}}))


def rust():
    crate = archive({
        "hutchdemo-rust-1.0.0/Cargo.toml": '[package]\nname = "hutchdemo-rust"\nversion = "1.0.0"\nedition = "2021"\n',
        "hutchdemo-rust-1.0.0/src/lib.rs": "",
    })
    put("crates/hutchdemo-rust/1.0.0/download", crate)
    put("config.json", json.dumps({"dl": "https://crates.test/crates"}))
    line = {"name": "hutchdemo-rust", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False,
            "cksum": hashlib.sha256(crate).hexdigest()}
    put("hu/tc/hutchdemo-rust", json.dumps(line) + "\n")


def go():
    module = "module example.test/demo\n\ngo 1.20\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as source:
        source.writestr("example.test/demo@v1.0.0/go.mod", module)
        source.writestr("example.test/demo@v1.0.0/demo.go", "package demo\n\nfunc Works() string { return \"go works\" }\n")
    place = "example.test/demo/@v"
    put(f"{place}/list", "v1.0.0\n")
    put(f"{place}/v1.0.0.info", json.dumps({"Version": "v1.0.0", "Time": "2024-01-01T00:00:00Z"}))
    put(f"{place}/v1.0.0.mod", module)
    put(f"{place}/v1.0.0.zip", buffer.getvalue())


def debian():
    with tempfile.TemporaryDirectory() as work:
        os.makedirs(f"{work}/tree/DEBIAN")
        os.makedirs(f"{work}/tree/usr/bin")
        control = "Package: hutchdemo\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@example.com>\nDescription: a test\n"
        with open(f"{work}/tree/DEBIAN/control", "w") as file:
            file.write(control)
        with open(f"{work}/tree/usr/bin/hutchdemo", "w") as file:
            file.write("#!/bin/sh\necho apt works\n")
        os.chmod(f"{work}/tree/usr/bin/hutchdemo", 0o755)
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", f"{work}/tree", f"{work}/demo.deb"],
                       check=True, stdout=subprocess.DEVNULL)
        with open(f"{work}/demo.deb", "rb") as file:
            package = file.read()
    put("debian/hutchdemo_1.0_all.deb", package)
    put("debian/Packages", control + f"Filename: ./hutchdemo_1.0_all.deb\nSize: {len(package)}\nSHA256: {hashlib.sha256(package).hexdigest()}\n")


for make in [python, node, rust, go, debian]:
    make()
