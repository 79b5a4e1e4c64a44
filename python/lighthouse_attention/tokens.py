"""The command `python -m lighthouse_attention.tokens`: text to a token file that `lighthouse train` reads.

What text is, is what the trainer takes for it (docs/data.md).
"""

import argparse
import collections
import dataclasses
import fnmatch
import gzip
import importlib
import json
import os
import pathlib
import stat
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NoReturn

import numpy
from tokenizers import Tokenizer

_MAGIC = b"LHTOKENS"
_HEADER = struct.Struct("<8sIIQQ")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NAMED = 5  # of what is left out for one reason


@dataclasses.dataclass
class Inventory:
    """How much was taken, and what was left out, and why: the first names of each reason, and how many there are."""

    files: int = 0
    documents: int = 0
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def leave_out(self, why: str, name: str, detail: str = "") -> None:
        self.counts[why] += 1
        names = self.left_out.setdefault(why, [])
        if len(names) < _NAMED:
            names.append(f"{name}: {detail}" if detail else name)

    def __str__(self) -> str:
        def names(why: str) -> str:
            return ", ".join(self.left_out[why] + ["..."] * (self.counts[why] > _NAMED))

        return ", ".join(f"{count} {why} ({names(why)})" for why, count in self.counts.items())


def documents(
    paths: Iterable[str | os.PathLike[str]],
    field: str = "text",
    out: pathlib.Path | None = None,
    inventory: Inventory | None = None,
) -> Iterator[str]:
    """The documents of files, folders and patterns: a file is one, of JSON lines and Parquet each row is one.

    Args:
        field: The field of a line, or the column, that has the text.
        out: A file that is left out: what is written from the documents.
        inventory: Is told what is taken and left out.

    Raises:
        ValueError: Naming the file and line that is not what it must be, or a path that leads to nothing.
    """
    inventory = Inventory() if inventory is None else inventory
    # Now, and not when the first is asked for: what is written from them is not one of them.
    files = list(_files([os.fspath(path) for path in paths], inventory))
    return _documents(files, field, out, inventory)


def _documents(
    files: list[tuple[str, str]], field: str, out: pathlib.Path | None, inventory: Inventory
) -> Iterator[str]:
    for root, path in files:
        name = os.path.relpath(path, root) if path != root else os.path.basename(path)
        if out is not None and out.exists() and os.path.samefile(path, out):
            inventory.leave_out("the file that is written", name)
            continue
        taken = 0
        for row, text in _texts(path, field, inventory, name):
            if _is_text(text, name + row, inventory):
                taken += 1
                yield text.decode()
        inventory.files += taken > 0
        inventory.documents += taken


def _texts(path: str, field: str, inventory: Inventory, name: str) -> Iterator[tuple[str, bytes]]:
    """What may be a document, and which row of the file it is."""
    kind = path.lower()
    if kind.endswith((".gz", ".zst")):
        kind = os.path.splitext(kind)[0]
    if kind.endswith(".bin"):
        inventory.leave_out("a token file (.bin)", name)
    elif kind.endswith(".parquet"):
        yield from _rows(path, field)
    elif kind.endswith((".jsonl", ".ndjson")) or (kind.endswith(".json") and _has_json_lines(path, field)):
        for number, line in enumerate(_lines(path), 1):
            if line.strip(b" \t\r\n"):
                yield f":{number}", _field_of(line, field, f"'{path}', line {number},")
    else:
        yield "", b"".join(_pieces(path)).removeprefix(_BYTE_ORDER_MARK)


def _is_text(text: bytes, name: str, inventory: Inventory) -> bool:
    zero, bad = text.find(b"\0"), -1
    try:
        text.decode()
    except UnicodeDecodeError as error:
        bad = error.start
    if not text:
        inventory.leave_out("empty", name)
    elif zero >= 0 and not 0 <= bad < zero:
        inventory.leave_out("not text: a byte is NUL", name, f"byte {zero} is NUL")
    elif bad >= 0:
        inventory.leave_out("not UTF-8", name, f"byte {bad} is not UTF-8")
    else:
        return True
    return False


def _field_of(line: bytes, field: str, where: str) -> bytes:
    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        text = json.loads(line.decode(), parse_constant=no_constant)[field]
        if isinstance(text, str):
            return text.encode()
        why = f"{field!r} is {type(text).__name__}"
    except KeyError:
        why = f"it has no {field!r}"
    except (ValueError, TypeError, RecursionError) as error:
        why = str(error)[:200]
    raise ValueError(f"{where} is not a JSON object with a string {field!r} (--field): {why}")


def _has_json_lines(path: str, field: str) -> bool:
    """Whether the first line that is not blank is an object, with the field, or followed by more lines."""
    lines = (line for line in _lines(path) if line.strip(b" \t\r\n"))
    first = next(lines, b"")
    if not first.lstrip(b" \t").startswith(b"{"):
        return False
    try:
        found = json.loads(first.decode())
    except ValueError:
        return False
    return isinstance(found, dict) and (isinstance(found.get(field), str) or next(lines, None) is not None)


def _rows(path: str, column: str) -> Iterator[tuple[str, bytes]]:
    for number, text in enumerate(_column(path, column), 1):
        if not isinstance(text, str):
            raise ValueError(f"'{path}', row {number}: {column!r} is {type(text).__name__}; it must be text")
        yield f":{number}", text.encode()


def _column(path: str, column: str) -> Iterator[Any]:
    parquet = _pyarrow(path, "pyarrow.parquet")
    names = [column]
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column in names:
                for batch in file.iter_batches(columns=[column], batch_size=1024):
                    yield from batch.column(0).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's are both
        raise ValueError(f"cannot read '{path}': {error}") from error
    if column not in names:
        raise ValueError(f"'{path}' has no column {column!r} (--field); it has {', '.join(names)}")


def _pyarrow(path: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"to read '{path}' the package pyarrow is needed: pip install pyarrow") from error


def _open(path: str) -> IO[bytes]:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.lower().endswith(".zst"):
        stream: IO[bytes] = _pyarrow(path, "pyarrow").CompressedInputStream(path, "zstd")
        return stream
    return open(path, "rb")


def _pieces(path: str) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            while piece := file.read(1 << 20):
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from error


def _lines(path: str) -> Iterator[bytes]:
    rest, first = b"", True
    for piece in _pieces(path):
        if first:
            piece, first = piece.removeprefix(_BYTE_ORDER_MARK), False
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _files(paths: list[str], inventory: Inventory) -> Iterator[tuple[str, str]]:
    """The files that the paths lead to, each with the folder that its name is relative to."""
    seen: set[str] = set()
    for path in paths:
        if os.path.exists(path) or not any(c in path for c in "*?["):
            root, pattern = path, []
            if not os.path.lexists(path):
                raise ValueError(f"the data '{path}' does not exist")
            if not os.path.isdir(path) and not os.path.isfile(path):
                raise ValueError(f"the data '{path}' is neither a file nor a folder")
        else:
            parts = pathlib.PurePath(path).parts
            fixed = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
            root, pattern = os.path.join(*parts[:fixed]) if fixed else ".", list(parts[fixed:])
        found = _Finder(root, inventory).find(pattern)
        if pattern and not found:
            raise ValueError(f"the data '{path}' is a pattern that no file matches")
        for file in found:
            if (normal := os.path.abspath(file)) not in seen:
                seen.add(normal)
                yield root, file


class _Finder:
    """The files of one path: those of a folder folder by folder, no folder twice."""

    def __init__(self, root: str, inventory: Inventory) -> None:
        self.root, self.inventory = root, inventory
        self.files: set[str] = set()
        self.links: list[str] = []
        self.folders: set[tuple[int, int]] = set()

    def find(self, pattern: list[str]) -> list[str]:
        try:
            if not pattern:
                self.take(self.root)
            elif os.path.isdir(self.root):
                self.match(self.root, pattern)
            for link in self.links:  # which grows on the way
                if self.is_new(link):
                    self.enter(link)
                else:
                    self.leave_out("a link to a folder that is read already", link)
        except OSError as error:
            raise ValueError(f"cannot read '{error.filename}': {error.strerror}") from error
        return sorted(self.files, key=lambda file: os.fsencode(file).split(b"/"))

    def match(self, folder: str, pattern: list[str]) -> None:
        name, *rest = pattern
        if name == "**":
            if not rest:
                self.take(folder)
                return
            self.match(folder, rest)
        for path in self.entries(folder):
            if name == "**":
                if os.path.isdir(path) and not os.path.islink(path):
                    self.match(path, pattern)
            elif fnmatch.fnmatchcase(os.path.basename(path), name):
                if not rest:
                    self.take(path)
                elif os.path.isdir(path):
                    self.match(path, rest)

    def take(self, path: str) -> None:
        if not os.path.isdir(path):
            self.add(path)
        elif self.is_new(path):
            self.enter(path)

    def enter(self, folder: str) -> None:
        for path in self.entries(folder):
            if not os.path.isdir(path):
                self.add(path)
            elif os.path.islink(path):
                self.links.append(path)
            elif what := _ours(path):
                self.leave_out(what, path)
            elif self.is_new(path):
                self.enter(path)

    def add(self, path: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError as error:
            raise ValueError(f"cannot read '{path}': the symbolic link leads nowhere") from error
        if stat.S_ISREG(mode):
            self.files.add(path)
        else:
            self.leave_out("neither a file nor a folder", path)

    def leave_out(self, why: str, path: str) -> None:
        self.inventory.leave_out(why, os.path.relpath(path, self.root))

    def is_new(self, folder: str) -> bool:
        status = os.stat(folder)
        key = (status.st_dev, status.st_ino)
        new = key not in self.folders
        self.folders.add(key)
        return new

    @staticmethod
    def entries(folder: str) -> list[str]:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder), key=os.fsencode)]


def _ours(folder: str) -> str:
    """Whether it is the folder of a run of the trainer, or of a model: what is in there is not text to train on."""

    def has(*names: str) -> bool:
        return any(os.path.exists(os.path.join(folder, name)) for name in names)

    if has("checkpoints") and has("lock", "recipe.toml"):
        return "the folder of a run"
    if has("config.json") and has("model.safetensors", "model.safetensors.index.json"):
        return "the folder of a model"
    return ""


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """One more than the largest id: ids may have gaps."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def write_tokens(tokenizer: Tokenizer, texts: Iterable[str], end: int, out: pathlib.Path) -> int:
    """Writes a token file of documents, each ended by the id `end`, and returns how many ids it has.

    The file is written under another name and renamed when it is whole; where there are no documents, or something goes
    wrong, it is not written.
    """
    vocabulary = vocabulary_of(tokenizer)
    kind = numpy.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    partial, count = out.with_name(f"{out.name}.partial-{os.getpid()}"), 0
    try:
        with partial.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, 1, kind.itemsize, 0, vocabulary))
            for text in texts:
                ids = numpy.array([*tokenizer.encode(text, add_special_tokens=False).ids, end])
                if ids.max() >= vocabulary:
                    raise ValueError(f"the tokenizer gives the id {ids.max()}; its vocabulary has {vocabulary}")
                file.write(ids.astype(kind).tobytes())
                count += len(ids)
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, 1, kind.itemsize, count, vocabulary))
            file.flush()
            os.fsync(file.fileno())
        if count > 0:
            partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Text to a token file that `lighthouse train` reads.")
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="a tokenizer.json")
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="text, JSON lines, Parquet, folders of them, or a pattern"
    )
    parser.add_argument("--end", required=True, metavar="TOKEN", help="the token that ends a document")
    parser.add_argument("--field", default="text", help="of JSON lines, or column of Parquet [text]")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.bin")
    options = parser.parse_args(arguments)
    try:
        tokenizer = Tokenizer.from_file(options.tokenizer)
    except Exception as error:  # it raises nothing more special
        parser.error(f"TOKENIZER is '{options.tokenizer}'; it must be a tokenizer.json: {error}")
    end = tokenizer.token_to_id(options.end)
    if end is None:
        parser.error(f"--end is {options.end!r}; it must be a token of {options.tokenizer}")
    inventory = Inventory()
    try:
        texts = documents(options.paths, options.field, options.out, inventory)
        count = write_tokens(tokenizer, texts, end, options.out)
        if count == 0:
            what = f"'{options.paths[0]}'" + (f" and {len(options.paths) - 1} more" if options.paths[1:] else "")
            raise ValueError(f"the data {what} holds no text" + (f": {inventory}" if inventory.counts else ""))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if inventory.counts:
        print(f"left out: {inventory}", file=sys.stderr)
    print(
        f"{options.out}: {count} tokens of a vocabulary of {vocabulary_of(tokenizer)}, of {inventory.documents} documents "
        f"in {inventory.files} files; each ends with the id {end} (data.end_token)"
    )


if __name__ == "__main__":
    main()
