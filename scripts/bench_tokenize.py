"""Throughput of `uniattn tokenize` and `uniattn prepare` beside Hugging Face tokenizers, tiktoken and sentencepiece, two
threads each.

    .venv/bin/python scripts/bench_tokenize.py DIRECTORY

DIRECTORY holds the published llama3/tokenizer.model (tiktoken ranks) and llama2/tokenizer.model (SentencePiece). The text
is 50 MB of Python modules with their documentation from this machine, one line a text. Ours is the whole program: start,
loading the tokenizer, reading the file, tokenizing, writing the ids. The peers encode a list of lines that is in memory, with
loading and reading left out. `prepare` gets the same text as JSONL documents of 4,000 characters, and besides parses them, marks
labels, checks their bytes and writes shards; its peer encodes the documents. Rounds are interleaved, figures are medians; the counts of ids show that all do the same work
(Hugging Face's Llama-2 is translated here from the pieces, and parts a few rare words in another way).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THREADS = 2
os.environ |= {"RAYON_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}  # before the libraries start theirs

import sentencepiece
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import TikTokenConverter

PROGRAM = Path(__file__).parents[1] / "build" / "release" / "uniattn"
TEXT_BYTES = 50_000_000
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Contender:
    name: str
    run: Callable[[], Any]  # what is timed
    count: Callable[[Any], int]  # ids in what it returned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lines = gather()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {THREADS} threads, median of {arguments.rounds}")
    print("| model | | MB/s | seconds | ids |\n| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")
        for model, peers in (("llama3", llama3_peers), ("llama2", llama2_peers)):
            directory = arguments.directory / model
            contenders = [ours(directory, text), *peers(directory / "tokenizer.model", lines)]
            measure(model, contenders, text.stat().st_size / 1e6, arguments.rounds)
            documents = gather_documents(lines)
            contenders = [prepare(directory, documents, Path(folder)), *peers(directory / "tokenizer.model", documents)[:1]]
            measure(model, contenders, text.stat().st_size / 1e6, arguments.rounds)


def measure(model: str, contenders: list[Contender], megabytes: float, rounds: int) -> None:
    seconds, ids = {c: [] for c in contenders}, {}
    for _ in range(rounds):
        for contender in contenders:
            start = time.perf_counter()
            result = contender.run()
            seconds[contender].append(time.perf_counter() - start)
            ids[contender] = contender.count(result)
            del result
    for contender in contenders:
        median = statistics.median(seconds[contender])
        print(f"| {model} | {contender.name} | {megabytes / median:.1f} | {median:.2f} | {ids[contender]:,} |", flush=True)


def gather() -> list[str]:
    """Lines of the standard library's and the installed packages' modules; the order depends on their versions alone."""
    paths, lines, size = sysconfig.get_paths(), [], 0
    for root in (paths["stdlib"], paths["purelib"]):
        for file in sorted(Path(root).rglob("*.py")):
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            lines += text.split("\n")
            size += len(text.encode())
            if size >= TEXT_BYTES:
                return lines
    return lines


def ours(directory: Path, text: Path) -> Contender:
    out = text.with_suffix(".ids")

    def run() -> None:
        with out.open("wb") as file:
            subprocess.run([PROGRAM, "tokenize", "--model", directory, "--text", text], stdout=file, check=True)

    return Contender("uniattn tokenize", run, lambda _: len(out.read_bytes().split()))


def gather_documents(lines: list[str]) -> list[str]:
    text = "\n".join(lines)
    return [text[at : at + 4000] for at in range(0, len(text), 4000)]


def prepare(directory: Path, documents: list[str], folder: Path) -> Contender:
    model, data, run_directory = folder / f"model-{directory.name}", folder / "documents.jsonl", folder / "run"
    data.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    write_model(directory, model)
    config = folder / "prepare.yaml"
    source = {"path": str(data), "format": "text"}
    sections = {
        "run": {"name": "bench", "dir": str(run_directory)},
        "model": {"path": str(model)},
        "data": {"train": [source], "max_length": 8192},
    }
    config.write_text(json.dumps(sections))  # JSON is YAML

    def run() -> dict:
        shutil.rmtree(run_directory, ignore_errors=True)
        done = subprocess.run([PROGRAM, "prepare", config, "--json"], capture_output=True, check=True)
        return json.loads(done.stdout)["train"]

    return Contender("uniattn prepare", run, lambda counts: counts["tokens"])


def write_model(directory: Path, model: Path) -> None:
    """A directory that `prepare` accepts: the tokenizer, and the smallest Llama that has its vocabulary."""
    llama3 = directory.name == "llama3"
    config = LlamaConfig(
        vocab_size=128256 if llama3 else 32000, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, bos_token_id=128000 if llama3 else 1, eos_token_id=128001 if llama3 else 2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(model)
    shutil.copy(directory / "tokenizer.model", model)


def huggingface(tokenizer: Tokenizer, lines: list[str]) -> Contender:
    run = lambda: tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    return Contender("tokenizers", run, lambda encodings: sum(len(encoding) for encoding in encodings))


def total(ids: list[list[int]]) -> int:
    return sum(map(len, ids))


def llama3_peers(model: Path, lines: list[str]) -> list[Contender]:
    ranks = load_tiktoken_bpe(str(model))
    original = tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    same = TikTokenConverter(str(model), pattern=LLAMA3, extra_special_tokens=[]).converted()
    run = lambda: original.encode_ordinary_batch(lines, num_threads=THREADS)
    return [huggingface(same, lines), Contender("tiktoken", run, total)]


def llama2_peers(model: Path, lines: list[str]) -> list[Contender]:
    original = sentencepiece.SentencePieceProcessor(model_file=str(model))
    run = lambda: original.encode(lines, num_threads=THREADS)
    return [huggingface(converted(original), lines), Contender("sentencepiece", run, total)]


def converted(original: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """A SentencePiece BPE model as Hugging Face has it: any two pieces that together are a piece merge, lower ids first."""
    pieces = {original.id_to_piece(i): i for i in range(original.get_piece_size())}
    ordinary = (piece for piece, i in pieces.items() if not (original.is_control(i) or original.is_unknown(i)))
    parted = ((piece[:at], piece[at:]) for piece in ordinary for at in range(1, len(piece)))
    merges = [(left, right) for left, right in parted if left in pieces and right in pieces]
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


if __name__ == "__main__":
    main()
