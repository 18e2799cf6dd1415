"""Faults of shared storage: a file system of our own that behaves as NFS does, mounted twice, as by two machines.

    pip install mfusepy    # and libfuse 3; without them, or without the right to mount, these faults are not done

What it takes over from NFS: a file that is open and removed stays in its folder under another name; names are cached
for seconds; locks are the server's, or there are none; a rename that was done may be reported as failed (a lost reply);
a write or a sync may fail (a "soft" mount). What it does not show: two machines, their page caches and their clocks.
`inject.py` runs these with the others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

Result = dict[str, Any]
NAMES_CACHED = 3.0
"""Seconds."""


def serve(backing: str, mount: str, fault: str, seed: str) -> None:
    """Serve a folder until it is unmounted. ``fault`` is "", "no locks", "lost replies" or "soft"."""
    import mfusepy

    rng = Random(seed)

    class Shared(mfusepy.Operations):
        use_ns = True

        def __init__(self) -> None:
            self.open_files: Counter[str] = Counter()
            self.names: dict[int, str] = {}

        def at(self, path: str) -> str:
            return backing + path

        def fails(self, what: str, chance: float) -> bool:
            return fault == what and rng.random() < chance

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.lstat(self.at(path)) if fh is None else os.fstat(fh)
            held = {key: getattr(found, key) for key in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")}
            return held | {key: getattr(found, f"{key}_ns") for key in ("st_atime", "st_mtime", "st_ctime")}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(self.at(path))]

        def readlink(self, path: str) -> str:
            return os.readlink(self.at(path))

        def symlink(self, target: str, source: str) -> int:
            os.symlink(source, self.at(target))
            return 0

        def link(self, target: str, source: str) -> int:
            os.link(self.at(source), self.at(target))
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(self.at(path), mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(self.at(path))
            return 0

        def chmod(self, path: str, mode: int) -> int:
            os.chmod(self.at(path), mode)
            return 0

        def chown(self, path: str, uid: int, gid: int) -> int:
            return 0

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            os.utime(self.at(path), ns=times)
            return 0

        def opened(self, path: str, flags: int, mode: int = 0o644) -> int:
            fh = os.open(self.at(path), flags & ~os.O_APPEND, mode)  # the kernel gives the place to write
            self.names[fh] = path
            self.open_files[path] += 1
            return fh

        def open(self, path: str, flags: int) -> int:
            return self.opened(path, flags)

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return self.opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

        def release(self, path: str, fh: int) -> int:
            held = self.names.pop(fh)
            self.open_files[held] -= 1
            os.close(fh)
            if not self.open_files[held] and Path(held).name.startswith(".nfs"):
                os.unlink(self.at(held))
            return 0

        def unlink(self, path: str) -> int:
            if self.open_files[path]:
                self.rename(path, f"{Path(path).parent}/.nfs{rng.getrandbits(64):016x}".replace("//", "/"))
            else:
                os.unlink(self.at(path))
            return 0

        def rename(self, old: str, new: str) -> int:
            if self.open_files[new] and os.path.exists(self.at(new)):
                self.unlink(new)
            os.rename(self.at(old), self.at(new))
            self.open_files[new] += self.open_files.pop(old, 0)
            self.names = {fh: new if name == old else name for fh, name in self.names.items()}
            if self.fails("lost replies", 0.3):
                raise mfusepy.FuseOSError(errno.ENOENT)  # asked again, the server knows no such file
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            if self.fails("soft", 0.02):
                raise mfusepy.FuseOSError(errno.EIO)
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(self.at(path) if fh is None else fh, length)
            return 0

        def flush(self, path: str, fh: int) -> int:
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            if self.fails("soft", 0.05):
                raise mfusepy.FuseOSError(errno.EIO)
            return 0

        def flock(self, path: str, fh: int, op: int) -> int:
            if fault == "no locks":
                raise mfusepy.FuseOSError(errno.ENOLCK)
            fcntl.flock(fh, op)
            return 0

    cached = {"entry_timeout": NAMES_CACHED, "negative_timeout": NAMES_CACHED, "attr_timeout": 0}
    mfusepy.FUSE(Shared(), mount, foreground=True, allow_other=False, **cached)


def _available() -> bool:
    return os.getuid() == 0 and importlib.util.find_spec("mfusepy") is not None and Path("/dev/fuse").exists()


@contextlib.contextmanager
def _mounts(*faults: str, seed: int = 0) -> Iterator[list[Path]]:
    """Mount one folder once for each fault."""
    import inject

    backing, places, servers = inject.WORK / "served", list[Path](), []
    shutil.rmtree(backing, ignore_errors=True)
    backing.mkdir()
    try:
        for number, fault in enumerate(faults):
            place = inject.WORK / f"machine-{number}"
            place.mkdir(exist_ok=True)
            servers.append(subprocess.Popen([sys.executable, __file__, str(backing), str(place), fault, str(seed)]))
            while not os.path.ismount(place):
                assert servers[-1].poll() is None, "the file system does not start"
                time.sleep(0.02)
            places.append(place)
        yield places
    finally:
        for place in places:
            subprocess.run(["umount", "-l", str(place)], check=False)
        for server in servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _judged(out: Path) -> Result:
    import inject
    import stage

    return inject.judged(out, stage.content(inject.base()))


def _moved(number: int) -> Result:
    """Kill a run on one machine and go on at once on the other, whose names are cached."""
    import inject
    import stage

    with _mounts("", "") as (first, second):
        os.listdir(second)
        child = stage.start((*stage.RUN, "--out", str(first / "run")), inject.LOG)
        while stage.lines(first / "run") < 2 * number and child.poll() is None:
            for name in ("config.json", "trials.jsonl", "frontier.json", "run.lock"):
                (second / "run" / name).exists()  # remembered, whether it is there or not
            time.sleep(0.001)
        child.kill(signal.SIGKILL)
        child.wait()
        return {"moment": f"{stage.lines(first / 'run')} records", **_judged(second / "run")}


def _both(number: int) -> Result:
    """A second run on the other machine is refused while the first one goes on."""
    import inject
    import stage

    with _mounts("", "") as (first, second):
        one = stage.start((*stage.RUN, "--out", str(first / "run")), inject.WORK / "first.txt")
        while stage.lines(first / "run") < 1 + 4 * number and one.poll() is None:
            time.sleep(0.001)
        one.kill(signal.SIGSTOP)
        code, said = stage.run(second / "run", inject.LOG)
        one.kill(signal.SIGCONT)
        ended, found = one.wait(), _judged(first / "run")
        held = code == 2 and "another search is running" in said and inject.plainly(said) and ended == 0
        return {"exit": code, **found, "held": held and found["held"]}


def _failing(fault: str, number: int) -> Result:
    """Run again and again on storage that fails now and then, then on one that does not: nothing was lost."""
    import inject
    import stage

    codes, plain = list[int](), True
    with _mounts(fault, "", seed=number) as (bad, good):
        while (not codes or codes[-1] != 0) and len(codes) < 8 + number:
            code, said = stage.run(bad / "run", inject.LOG)
            codes.append(code)
            plain &= code == 0 or (code == 2 and inject.plainly(said))
        found = _judged(good / "run")
    return {"exits": codes, **found, "held": found["held"] and plain}


def _no_locks() -> Result:
    """Storage without locks is refused in one line that names the cause."""
    import inject
    import stage

    with _mounts("no locks") as (place,):
        code, said = stage.run(place / "run", inject.LOG)
    held = code == 2 and "No locks available" in said and inject.plainly(said)
    return {"exit": code, "said": said.strip()[-200:], "lost": "nothing", "held": held}


def shared() -> Iterator[tuple[str, Callable[[], Result]]]:
    """Shared storage with NFS's renames, locks and errors: a run goes on at another machine."""
    if not _available():
        return
    for number in range(8):
        yield f"killed here, resumed there {number}", functools.partial(_moved, number)
    for number in range(3):
        yield f"two machines {number}", functools.partial(_both, number)
    for number in range(4):
        yield f"lost replies {number}", functools.partial(_failing, "lost replies", number)
        yield f"soft mount {number}", functools.partial(_failing, "soft", number)
    yield "no locks", _no_locks


if __name__ == "__main__":
    serve(*sys.argv[1:])
