"""Files on disks and in buckets: addresses, atomic writes, local copies, spools.

With `locks`, the one module that knows how an object store differs from a disk: objects appear whole or not at all, but
nothing can be renamed, appended to or locked, and folders are no more than the beginnings of names. An address that a
user gave goes through `as_path` where a bucket will do, and through `on_disk` where it will not (video files, configs).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from etils.epath.gpath import PosixGPath  # the class of epath.Path("gs://...")

from pv_vae_jax.messages import ConfigError

PROBE = 45.0  # seconds within which a bucket must answer for the first time
SPECIAL = r"[*?#\[\]]"  # gcsfs and Orbax match by these, and ArrayRecord takes # for the beginning of a version
BUCKET_MARK = "commit_success.txt"  # Orbax writes it last into a state in a bucket, where it renames nothing
# What is beside these locks may not be written: another process holds them now, as after a long pause of this one.
lost_locks: set[str] = set()

# What mends an error of the system, by its number. Libraries in C++ may give the text of the number alone.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give yourself the right to it, or use another folder"),
    errno.EROFS: "mount the disk for writing, or use another folder",
    errno.EFBIG: "allow larger files (ulimit -f), or use another file system",
}


def remedy(error: Exception) -> str | None:
    """What to do about a file that cannot be read or written; None for what no change of disks or rights mends."""
    number = getattr(error, "errno", None) or next((n for n in REMEDIES if os.strerror(n) in str(error)), None)
    return None if number is None else REMEDIES.get(number)


class BucketPath(PosixGPath):
    """A path `gs://BUCKET/...` with the methods of `pathlib.Path` that this library uses."""

    @property
    def _backend(self) -> Any:
        filesystem()  # set up as below, in processes that were handed a path as well
        return super()._backend

    def absolute(self) -> BucketPath:
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder exists while an object is in it."""

    def open(self, mode: str = "r", **options: Any) -> Any:
        """As `pathlib`'s, but nothing is there before the file is closed, and nothing can be appended."""
        if "a" in mode:
            raise ValueError(f"expected to write {self} whole, got mode {mode!r}: objects take no more; use a Spool")
        return super().open(mode, **options)

    def stat(self) -> Any:
        found = super().stat()
        return types.SimpleNamespace(**vars(found), st_size=found.length, st_mtime=found.mtime)


def is_remote(path: str | Path) -> bool:
    """Whether `path` is in a bucket."""
    return isinstance(path, BucketPath) or str(path).startswith("gs://")


def check_address(name: str, path: Any) -> None:
    """Refuse an empty path, a ~ that no shell replaced, and addresses of other stores than Google's.

    As paths, the last two would name a folder here.

    Args:
      name: name of the setting, used in the message.
      path: value of the setting; a `Path` has lost one of the slashes.

    Raises:
      ConfigError: `path` is one of these; an empty one would mean the current folder.
    """
    if not str(path):
        raise ConfigError(f"{name} is empty: name a folder, such as runs/demo")
    if re.match(r"~[\w.-]*(/|$)", str(path)):
        raise ConfigError(
            f"{name} is {path}, and no shell has replaced its ~ by a home folder: write $HOME, or a space in place of "
            "the = before it"
        )
    if (scheme := re.match(r"(\w[\w+.-]+):/", str(path))) and not re.match("gs:/{1,2}[^/]", str(path)):
        why = "it names no bucket" if scheme[1] == "gs" else f"training states cannot be written to {scheme[1]}://"
        raise ConfigError(
            f"{name} must be a folder or gs://BUCKET/FOLDER, got {path} ({why}): "
            "mount the bucket (docs/buckets.md has the commands) and name the mounted folder"
        )


def mounted(path: Path | BucketPath) -> str:
    """How to read a folder of a bucket through the file system."""
    bucket, *rest = path.parts[2:]
    return (
        f"mount the bucket (mkdir -p /mnt/{bucket} && gcsfuse --implicit-dirs {bucket} /mnt/{bucket}; see "
        f"docs/buckets.md for TPU VMs and pods) and name {Path('/mnt', bucket, *rest)}"
    )


def on_disk(path: str | Path, name: str = "this") -> Path:
    """The path of what is read through the file system alone.

    Raises:
      ConfigError: it is an address of a store; the message says how to mount it.
    """
    if re.match(r"\w[\w+.-]+:/", str(path)):
        how = "download it, or mount the bucket (docs/buckets.md has the commands), and name the file here"
        how = mounted(BucketPath(re.sub("^gs:/+", "gs://", str(path)))) if re.match("gs:/+[^/]", str(path)) else how
        raise ConfigError(f"{name} is read from a disk, got {path}: {how}")
    return Path(path)


def as_path(path: str | Path, name: str = "the folder") -> Path:
    """The path that a person wrote: of this machine, or in a bucket, which must answer.

    Raises:
      ConfigError: as `check_address`, or the address holds one of `SPECIAL`.
      ImportError: gcsfs is not installed.
      FileNotFoundError: there is no such bucket.
      OSError: the bucket does not answer within `PROBE` seconds, or may not be read.
    """
    check_address(name, path)
    if not re.match("gs:/", str(path)):
        return Path(path)
    address = re.sub("^gs:/+", "gs://", str(path))
    if found := re.search(SPECIAL, address):
        means = "which has a meaning of its own in buckets"
        raise ConfigError(f"{name} must not hold {found[0]}, {means}, got {address}: choose another name")
    _reach(address.split("/")[2], name, address)
    return cast(Path, BucketPath(address))


_reached: set[str] = set()


def _reach(bucket: str, name: str, address: str) -> None:
    """Ask a bucket for one name, once a process: ArrayRecord's reader would wait for an answer for ever."""
    if bucket in _reached:
        return
    answers: list[Exception | None] = []

    def ask() -> None:
        try:
            filesystem().call("GET", "b/{}/o", bucket, maxResults=1)
            answers.append(None)
        except Exception as error:  # of gcsfs, aiohttp, google.auth: no one type
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)  # finding credentials may block as well
    asking.start()
    asking.join(PROBE)
    fault = answers[0] if answers else TimeoutError(f"no answer in {PROBE:.0f} s")
    if isinstance(fault, ImportError):
        raise ImportError(f"{name}={address} needs gcsfs: pip install gcsfs (the extra [gcs] holds it)") from fault
    if isinstance(fault, FileNotFoundError):
        raise FileNotFoundError(f"no bucket gs://{bucket}, named by {name}={address}: create it, or correct the name")
    if fault:
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise OSError(
            f"the bucket gs://{bucket}, named by {name}={address}, cannot be read ({reason}): check network "
            "and name, and log in (gcloud auth application-default login, or a service account that may use the bucket)"
        ) from fault
    _reached.add(bucket)


@functools.cache
def filesystem() -> Any:
    """The file system by gcsfs, which repeats requests that fail."""
    import fsspec.config
    import gcsfs  # noqa: F401  # fsspec's own error would not say what to install

    # Orbax and other processes write beside it, so no listing may be remembered.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    os.environ.setdefault("EPATH_USE_TF", "false")  # or epath would import TensorFlow where it is installed
    # It tells of the bucket's type at every request, and logs with a traceback what it also raises.
    logging.getLogger("gcsfs").addFilter(lambda news: not news.exc_info and "bucket type" not in str(news.msg))
    return fsspec.filesystem("gcs", finalize_on_close=True)  # as epath asks for it: one object for both


def of_bucket(error: Exception) -> bool:
    """Whether an error is an answer of a bucket, or of those who log in to it: they have no common type."""
    libraries = ("gcsfs.", "fsspec.", "aiohttp.", "google.auth.", "google.api_core.")
    return type(error).__module__.startswith(libraries) or str(error).startswith("Forbidden: ")


def bucket_error(did: str, error: Exception) -> OSError:
    """An error that says what was `did`, what the bucket answered, and what to do."""
    answer = " ".join(str(error).split())[:300] or type(error).__name__
    login = getattr(error, "code", None) == 401 or type(error).__module__.startswith("google.auth")
    mend = "start the same command again later"
    if login or answer.startswith("Forbidden: "):
        mend = "log in (gcloud auth application-default login) with an account that may do this"
    return OSError(f"{did} ({answer}): {mend}")


def refuse_lost(path: Path) -> None:
    """Raise BlockingIOError if another process has taken over a lock that this one held beside or above `path`."""
    if taken := next((lock for lock in lost_locks if f"{path}/".startswith(lock.rpartition("/")[0] + "/")), None):
        raise BlockingIOError(f"{taken} is no longer held by this process: another one writes there; this one must end")


def _upload(source: Path, target: Path) -> None:
    refuse_lost(target)
    try:
        filesystem().put_file(str(source), str(target))
    except Exception as error:  # see _reach
        raise bucket_error(f"cannot write {target}", error) from error


@contextlib.contextmanager
def local(path: Path) -> Iterator[Path]:
    """Yield `path`, or while the block runs a copy of the object on this machine, for readers of files alone."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pv_vae_") as folder:
        filesystem().get_file(str(path), str(Path(folder, path.name)))
        yield Path(folder, path.name)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it, as far as possible."""
    if is_remote(folder):
        with contextlib.suppress(OSError):
            cast(BucketPath, folder).rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


class Spool:
    """A local folder that stands for `remote`: files grow here, which no object can, and are uploaded whole.

    Changed files are uploaded by `sync`, and every `every` seconds in the background. On a disk `folder` is `remote`
    itself, and nothing else happens.

    Args:
      remote: the folder that it stands for.
      keep: pattern of the files of `remote` that are fetched first, so that they can be continued.
      every: seconds between two uploads in the background.

    Attributes:
      folder: where to write.
    """

    def __init__(self, remote: Path, keep: str = "*.json*", every: float = 60.0):
        self.remote = self.folder = remote
        self._sent: dict[Path, tuple[int, int]] = {}
        self._one_at_a_time, self._closed = threading.Lock(), threading.Event()
        if is_remote(remote):
            self.folder = Path(tempfile.mkdtemp(prefix="pv_vae_"))
            for path in remote.glob(keep):
                (self.folder / path.name).write_bytes(path.read_bytes())
            self._sent = self._files()
            threading.Thread(target=self._upload_now_and_then, args=(every,), daemon=True).start()

    def _files(self) -> dict[Path, tuple[int, int]]:
        found = ((path, path.stat()) for path in self.folder.rglob("*") if path.is_file() and path.name[0] != ".")
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found}

    def _upload_now_and_then(self, every: float) -> None:
        while not self._closed.wait(every):
            with contextlib.suppress(OSError):  # sync raises it
                self.sync()

    def sync(self) -> None:
        """Upload what has changed; what is being written must have been flushed.

        Raises:
          OSError: the bucket does not take it, or the folder has become another process's (see `locked`).
        """
        if not is_remote(self.remote):
            return
        refuse_lost(self.remote)
        with self._one_at_a_time:
            for path, state in self._files().items():
                if self._sent.get(path) != state:
                    _upload(path, self.remote / path.relative_to(self.folder).as_posix())
                    self._sent[path] = state

    def close(self) -> None:
        """`sync` for the last time, and remove the local folder of a bucket's."""
        self._closed.set()
        self.sync()
        if is_remote(self.remote):
            shutil.rmtree(self.folder, ignore_errors=True)


def partial(path: Path) -> Path:
    """A hidden name, unique to this writer, under which `path` is written until it is complete."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}.partial{path.suffix}")


def partials(path: Path) -> list[Path]:
    """Temporary files that killed writers of `path` left behind, in this version or an earlier one."""
    if is_remote(path):
        return []
    name, stem, suffix = (glob.escape(part) for part in (path.name, path.stem, path.suffix))
    patterns = (f".{stem}.{'[0-9a-f]' * 16}.partial{suffix}", f".{name}.*partial")  # the second: earlier versions
    return [left for pattern in patterns for left in path.parent.glob(pattern)]


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; it becomes `path` when the block ends well, and is removed when it does not.

    Readers therefore see the old file or the complete new one, however many processes write it at once and even if the
    power fails. The suffix is kept, since some writers look at it (`.npz`, `.mp4`). In a bucket the file is uploaded at
    the end of the block.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="pv_vae_") as folder:
            yield Path(folder, path.name)
            _upload(Path(folder, path.name), path)
        return
    temporary = partial(path)
    temporary.touch()
    mode = temporary.stat().st_mode  # what the user's umask leaves
    try:
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors 0.8 lets the owner alone read its files
            temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or the name may reach the disk before the bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` to `path` atomically.

    Raises:
      ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    write_text(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_writable(folder: Path, remedy: str = "choose another --out") -> Path:
    """Create `folder` if needed, check that it is writable, and return it. To be called before the work, not after it.

    Raises:
      OSError: files cannot be written there; the message says what to do.
    """
    if is_remote(folder):
        write_text(folder / ".writable", "")
        (folder / ".writable").unlink(missing_ok=True)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): {remedy}") from error
    return folder
