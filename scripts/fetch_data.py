"""Gets public data sets by the `datasets` library and writes each as JSONL, which `uniattn prepare` reads.

    python scripts/fetch_data.py tulu3 data/                      # allenai/tulu-3-sft-mixture, format: messages
    python scripts/fetch_data.py pmc data/ --records 100000       # axiong/pmc_llama_instructions, format: alpaca
    python scripts/fetch_data.py alpaca data/                     # yahma/alpaca-cleaned, format: alpaca
    python scripts/fetch_data.py parquet data/ --files part-*.parquet

Records are streamed: neither memory nor disk holds more than the file that is written, which appears whole. `parquet`
turns local files of any data set into JSONL and needs no network. Needs `pip install datasets`.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets


@dataclass(frozen=True)
class Source:
    path: str  # on the Hugging Face hub
    columns: tuple[str, ...]  # what `uniattn prepare` reads


SOURCES = {
    "tulu3": Source("allenai/tulu-3-sft-mixture", ("messages",)),
    "pmc": Source("axiong/pmc_llama_instructions", ("instruction", "input", "output")),
    "alpaca": Source("yahma/alpaca-cleaned", ("instruction", "input", "output")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*SOURCES, "parquet"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--files", nargs="+", help="local Parquet files, for `parquet`")
    parser.add_argument("--records", type=int, help="stop after so many records (default: all)")
    arguments = parser.parse_args()
    if (arguments.name == "parquet") != bool(arguments.files):
        parser.error("--files and the name `parquet` belong together")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    out = arguments.directory / f"{arguments.name}.jsonl"
    count = write(out, itertools.islice(records(arguments.name, arguments.files), arguments.records))
    print(f"{out}: {count} records", file=sys.stderr)


def records(name: str, files: list[str] | None) -> Iterator[dict]:
    if name == "parquet":
        return iter(datasets.load_dataset("parquet", data_files=files, split="train", streaming=True))
    source = SOURCES[name]
    return ({key: row[key] for key in source.columns} for row in load(source))


def load(source: Source) -> datasets.IterableDataset:
    return datasets.load_dataset(source.path, split="train", streaming=True)


def write(out: Path, rows: Iterator[dict]) -> int:
    """Writes beside `out` and renames: an interrupted download leaves nothing that looks whole."""
    partial, count = out.with_suffix(".partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if not count:
        partial.unlink()
        raise SystemExit(f"{out}: the data set has no records")
    partial.replace(out)
    return count


if __name__ == "__main__":
    main()
