#!/usr/bin/env python3
"""Resident memory while 10,000 tokens are generated under a window, by `uniattn generate` and by `uniattn serve`.

    .venv/bin/python scripts/soak_generate.py [--tokens 10000] [--window 512]

Makes a small random Mistral whose layers share attention in pairs, and fails when memory grows by more than a MiB from
a tenth of the tokens to the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

import sentencepiece
from transformers import MistralConfig, MistralForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import uniattn  # noqa: E402

ALLOWED_KIB = 1024


def write_model(folder: Path, window: int, positions: int) -> None:
    """Without an end token, so that answers have the length that is asked for."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the model keeps what its window sees"] * 50), model_prefix=str(folder / "tokenizer"),
        vocab_size=320, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    config = MistralConfig(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, sliding_window=window, max_position_embeddings=positions, eos_token_id=None,
    )  # fmt: skip
    model = uniattn.convert(MistralForCausalLM(config), uniattn.SharingPlan.regular(4, 2, 0, 4))
    model.save_pretrained(folder)


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def generate(binary: Path, model: Path, tokens: int) -> list[int]:
    """Resident KiB of `uniattn generate` at each piece of text that it prints."""
    command = [str(binary), "generate", "--model", str(model), "--prompt", "the", "--max-new-tokens", str(tokens)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        memory = [resident_kib(process.pid) for _ in iter(process.stdout.read1, b"")]
    if process.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {process.returncode}")
    return memory[:-1]  # the last piece comes as the program ends


def serve(binary: Path, model: Path, tokens: int) -> list[int]:
    """The same of `uniattn serve` at each event of one streamed answer."""
    command = [str(binary), "serve", "--model", str(model), "--port", "0"]
    request = {"prompt": "the", "max_tokens": tokens, "temperature": 0, "stream": True}
    request["stream_options"] = {"include_usage": True}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in process.stderr if "http://" in line)
            connection = HTTPConnection(line.split("http://")[1].split("/")[0])
            connection.request("POST", "/v1/completions", json.dumps(request))
            events = (line for line in connection.getresponse() if line.startswith(b"data: {"))
            lines, memory = zip(*((line, resident_kib(process.pid)) for line in events))
        finally:
            process.terminate()
    made = json.loads(lines[-1][len("data: ") :])["usage"]["completion_tokens"]
    if made != tokens:
        sys.exit(f"the server made {made} tokens, not {tokens}")
    return list(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--binary", type=Path, default=Path("build/release/uniattn"))
    args = parser.parse_args()
    grew = False
    with tempfile.TemporaryDirectory(prefix="uniattn-soak-") as folder:
        write_model(Path(folder), args.window, args.tokens + 1000)
        for run in (generate, serve):
            start = time.perf_counter()
            memory = run(args.binary, Path(folder), args.tokens)
            tenths = [memory[len(memory) * (i + 1) // 10 - 1] for i in range(10)]
            grew |= max(tenths) - tenths[0] > ALLOWED_KIB
            print(f"{run.__name__}: {time.perf_counter() - start:.1f} s, resident KiB after each tenth: {tenths}")
    if grew:
        sys.exit("memory grew")


if __name__ == "__main__":
    main()
