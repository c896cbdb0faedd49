"""Makes what the quickstart trains with, out of text that is on this machine, in one directory:

    corpus.jsonl              documents {"text"}, for the base model
    instructions-train.jsonl  {"instruction", "input", "output"}: what does this function do? its documentation
    instructions-heldout.jsonl  the same from modules that appear in no other file
    untrained/                a Hugging Face directory: a small Llama with random weights and its SentencePiece tokenizer

    python scripts/quickstart_data.py runs/quickstart/data
"""

import argparse
import hashlib
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import torch
import transformers
from quickstart_docs import Doc, gather

HELD_OUT_SHARE = 0.06  # of the modules
HELD_OUT_INSTRUCTIONS = 240  # enough to tell the models apart; each is evaluated several times
VOCABULARY = 512  # small, so that a model of this size soon needs its attention to make words of pieces
ANSWER_LENGTH = (40, 400)  # characters
QUESTIONS = (
    "What does the {kind} {name} do?",
    "Explain the {kind} {name}.",
    "Describe {name} in a few words.",
    "What is the {kind} {name} for?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)

    docs = gather()
    train = [doc for doc in docs if not held_out(doc.module)]
    known = {first_words(doc) for doc in train}
    fresh = [doc for doc in docs if held_out(doc.module) and first_words(doc) not in known]

    texts = [text(doc) for doc in train]
    write_lines(directory / "corpus.jsonl", ({"text": line} for line in texts))
    write_lines(directory / "instructions-train.jsonl", filter(None, map(instruction, train)))
    held_out_rows = [row for row in map(instruction, fresh) if row]
    random.Random(0).shuffle(held_out_rows)
    write_lines(directory / "instructions-heldout.jsonl", held_out_rows[:HELD_OUT_INSTRUCTIONS])
    write_model(directory / "untrained", texts)
    (directory / "complete").touch()


def held_out(module: str) -> bool:
    digest = hashlib.sha256(module.encode()).digest()
    return int.from_bytes(digest[:4]) < HELD_OUT_SHARE * 2**32


def first_words(doc: Doc) -> str:
    """What two documents share when one was copied from the other and changed a little."""
    return " ".join(re.findall("[a-z]+", doc.paragraphs[0].lower())[:8])


def full_name(doc: Doc) -> str:
    return f"{doc.module}.{doc.name}" if doc.name else doc.module


def text(doc: Doc) -> str:
    title = doc.name if doc.kind == "topic" else full_name(doc)
    return "\n".join(filter(None, (title, doc.signature, *doc.paragraphs)))


def instruction(doc: Doc) -> dict[str, str] | None:
    answer = doc.paragraphs[0]
    if not doc.signature or not ANSWER_LENGTH[0] <= len(answer) <= ANSWER_LENGTH[1] or answer.startswith("Args"):
        return None
    question = random.Random(full_name(doc)).choice(QUESTIONS)
    return {
        "instruction": question.format(kind=doc.kind, name=full_name(doc)),
        "input": doc.signature,
        "output": answer,
    }


def write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w") as file:
        count = sum(bool(file.write(json.dumps(row) + "\n")) for row in rows)
    print(f"{path}: {count} documents")


def write_model(directory: Path, texts: list[str]) -> None:
    directory.mkdir(exist_ok=True)
    sample = random.Random(0).sample(texts, min(len(texts), 8000))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for document in sample for line in document.split("\n")),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        initializer_range=0.06,  # about 1 / sqrt(hidden size): at the usual 0.02 a model this narrow starts much slower
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(directory)
    print(f"{directory}: {model.num_parameters():,} parameters, random")


if __name__ == "__main__":
    main()
