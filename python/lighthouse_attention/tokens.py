"""The command `python -m lighthouse_attention.tokens`: text to a token file that `lighthouse train` reads (docs/data.md)."""

import argparse
import gzip
import json
import os
import pathlib
import struct
from collections.abc import Iterator

import numpy
from tokenizers import Tokenizer

_MAGIC = b"LHTOKENS"
_HEADER = struct.Struct("<8sIIQQ")


def documents(path: pathlib.Path, field: str = "text") -> Iterator[str]:
    """The documents below a folder, or of a file: a text file is one, a line of JSON lines is one.

    Raises:
        ValueError: Naming the file and line that is not what it must be.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        if not file.name.endswith((".jsonl", ".jsonl.gz")):
            yield file.read_text(encoding="utf-8")
            continue
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    text = json.loads(line)[field]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise ValueError(f"{file}, line {number} has no field {field!r}: {error!r}") from error
                if not isinstance(text, str):
                    raise ValueError(f"{file}, line {number}: {field!r} is {text!r}; it must be text")
                yield text


def write_tokens(tokenizer: Tokenizer, texts: Iterator[str], end: int, out: pathlib.Path) -> int:
    """Writes a token file of documents, each ended by the id `end`, and returns how many ids it has.

    The file is written under another name and renamed when it is whole.
    """
    vocabulary = tokenizer.get_vocab_size()
    kind = numpy.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    partial, count = out.with_name(out.name + ".partial"), 0
    with partial.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, 1, kind.itemsize, 0, vocabulary))
        for text in texts:
            ids = [*tokenizer.encode(text, add_special_tokens=False).ids, end]
            file.write(numpy.array(ids, dtype=kind).tobytes())
            count += len(ids)
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, 1, kind.itemsize, count, vocabulary))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out)
    return count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Text to a token file that `lighthouse train` reads.")
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="a tokenizer.json")
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=pathlib.Path, help="text, JSON lines, or folders of them"
    )
    parser.add_argument("--end", required=True, metavar="TOKEN", help="the token that ends a document")
    parser.add_argument("--field", default="text", help="of JSON lines [text]")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FILE.bin")
    options = parser.parse_args(arguments)
    tokenizer = Tokenizer.from_file(options.tokenizer)
    end = tokenizer.token_to_id(options.end)
    if end is None:
        parser.error(f"--end is {options.end!r}; it must be a token of {options.tokenizer}")
    texts = (text for path in options.paths for text in documents(path, options.field))
    count = write_tokens(tokenizer, texts, end, options.out)
    print(f"{options.out}: {count} tokens of a vocabulary of {tokenizer.get_vocab_size()}")


if __name__ == "__main__":
    main()
