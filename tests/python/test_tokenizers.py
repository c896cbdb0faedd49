"""`uniattn tokenize` gives the ids of the original libraries: Hugging Face tokenizers, tiktoken, sentencepiece."""

import base64
import json
import random
import shutil

import pytest
import sentencepiece
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin|>", "<|end|>"]
USER_DEFINED = ["<start_of_turn>", "<end_of_turn>", "\n\n", "<table>"]


def characters():
    """Lists of characters of one kind each, from which random strings are made."""
    ranges = {
        "ascii": (0x20, 0x7F), "control": (0, 0x20), "latin": (0x80, 0x250), "combining": (0x300, 0x370),
        "greek": (0x370, 0x400), "arabic": (0x600, 0x700), "devanagari": (0x900, 0x980), "hangul": (0xAC00, 0xAD00),
        "cjk": (0x4E00, 0x5000), "kana": (0x3040, 0x3100), "wide": (0x1F300, 0x1F650), "math": (0x1D400, 0x1D500),
        "punctuation": (0x2000, 0x2070), "any": (0x20, 0x20000), "unassigned too": (0, 0x110000),
    }  # fmt: skip
    kinds = [[chr(c) for c in range(*bounds) if not 0xD800 <= c < 0xE000] for bounds in ranges.values()]
    kinds += [list("0123456789"), list(" \t\n\r\v\f\x85\xa0\u180e\u2028\u3000"), list("abcdefghij" * 3 + " ,.'")]
    kinds += [["'s", "'S", "'ſ", "'LL", "'re", " don't", "\r\n", "  ", "▁", " ▁", "👩‍👩‍👧", "é", "🇨🇭"], [*SPECIAL, *USER_DEFINED]]
    return kinds


@pytest.fixture(scope="session")
def texts():
    generator, kinds = random.Random(5), characters()
    strings = ["", " ", "a", "\0"]
    while len(strings) < 10_000:
        some = generator.sample(kinds, generator.randint(1, 3))
        pieces = (c for _ in range(generator.randint(1, 6)) for c in generator.choices(generator.choice(some), k=4))
        strings.append("".join(pieces))
    return strings


def corpus():
    generator = random.Random(0)
    words = "the model shares one attention pattern between layers don't learn what's missing 1234 日本 über\n\n été 😀".split(" ")
    return [" ".join(generator.choices(words, k=12)) + generator.choice(["\n", "!\r\n", "  "]) for _ in range(400)]


def byte_level(pre_tokenizer, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def llama3_split(use_regex=False):
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)])


def gpt2_split():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def save(tokenizer, folder, merges_as_strings=False):
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    if merges_as_strings:
        parsed = json.loads(file.read_text())
        parsed["model"]["merges"] = [" ".join(merge) for merge in parsed["model"]["merges"]]
        file.write_text(json.dumps(parsed))


def ids_of_program(run_uniattn, folder, texts):
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    done = run_uniattn.run("tokenize", "--model", folder, "--text", file, "--jsonl")
    assert done.returncode == 0, done.stderr
    return [[int(word) for word in line.split()] for line in done.stdout.split("\n")[:-1]]


def assert_same(texts, got, expected):
    assert len(got) == len(expected) == len(texts)
    different = [(t, g, e) for t, g, e in zip(texts, got, expected) if g != list(e)]
    assert not different, f"{len(different)} of {len(texts)} differ, as {different[0]}"


def ids_of_huggingface(tokenizer, texts):
    tokenizer.encode_special_tokens = True  # their spelling is text here
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("split", [llama3_split, gpt2_split, lambda: llama3_split(use_regex=True)])
def test_byte_level_bpe(run_uniattn, tmp_path, texts, split, ignore_merges):
    tokenizer = byte_level(split(), ignore_merges)
    save(tokenizer, tmp_path, merges_as_strings=ignore_merges)
    expected = ids_of_huggingface(tokenizer, texts)
    assert_same(texts, ids_of_program(run_uniattn, tmp_path, texts), expected)


def test_added_tokens_that_are_not_special_match_as_a_whole(run_uniattn, tmp_path, texts):
    tokenizer = byte_level(llama3_split())
    tokenizer.add_tokens([AddedToken(t, normalized=t.startswith("<")) for t in ["<start_of_turn>", "<start", "abc", "ab", "\n\n"]])
    save(tokenizer, tmp_path)
    assert_same(texts, ids_of_program(run_uniattn, tmp_path, texts), ids_of_huggingface(tokenizer, texts))


def write_tiktoken(tokenizer, folder):
    """The vocabulary as ranks. Returns the same encoding of the tiktoken library."""
    byte_of, next_free = {}, 0x100
    for byte in range(256):
        printable = 0x20 < byte < 0x7F or (byte > 0xA0 and byte != 0xAD)
        byte_of[chr(byte if printable else next_free)] = byte
        next_free += not printable
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items()}
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda x: x[1]))
    (folder / "tokenizer.model").write_text("".join(lines))
    return tiktoken.Encoding("small", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})


def test_tiktoken_ranks(run_uniattn, tmp_path, texts):
    encoding = write_tiktoken(byte_level(llama3_split()), tmp_path)
    assert_same(texts, ids_of_program(run_uniattn, tmp_path, texts), encoding.encode_ordinary_batch(texts))


def train_sentencepiece(folder, model_type):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(folder / "tokenizer"), vocab_size=420, byte_fallback=True,
        model_type=model_type, user_defined_symbols=USER_DEFINED, normalization_rule_name="identity",
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_sentencepiece(run_uniattn, tmp_path, texts, model_type):
    processor = train_sentencepiece(tmp_path, model_type)
    assert_same(texts, ids_of_program(run_uniattn, tmp_path, texts), processor.encode(texts))


def with_byte_fallback(processor, normalizer=None, pre_tokenizer=None):
    """The Hugging Face translation of a SentencePiece BPE model."""
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    parted = ((piece[:at], piece[at:]) for piece in pieces for at in range(1, len(piece)))
    merges = [(left, right) for left, right in parted if left in pieces and right in pieces]
    merges.sort(key=lambda merge: pieces["".join(merge)])
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<start_of_turn>"])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<table>", normalized=False)])
    return tokenizer


def spaces_to_underline():
    return normalizers.Replace(" ", "▁")


@pytest.mark.parametrize(
    "normalizer, pre_tokenizer",
    [
        (lambda: normalizers.Sequence([normalizers.Prepend("▁"), spaces_to_underline()]), None),
        (spaces_to_underline, None),
        (spaces_to_underline, lambda: pre_tokenizers.Split(" ", "merged_with_previous")),
        (None, lambda: pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
        (None, lambda: pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
        (None, lambda: pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
    ],
    ids=["llama2", "bare", "gemma", "always", "first", "never"],
)
def test_byte_fallback_without_the_original(run_uniattn, tmp_path, texts, normalizer, pre_tokenizer):
    processor = train_sentencepiece(tmp_path, "bpe")
    (tmp_path / "tokenizer.model").unlink()
    tokenizer = with_byte_fallback(processor, normalizer and normalizer(), pre_tokenizer and pre_tokenizer())
    save(tokenizer, tmp_path, merges_as_strings=normalizer is None)
    assert_same(texts, ids_of_program(run_uniattn, tmp_path, texts), ids_of_huggingface(tokenizer, texts))


@pytest.mark.parametrize("name", ["llama2", "mistral-v0.1"])
def test_a_published_model_and_its_translation_agree(run_uniattn, material, tmp_path, name):
    model = material / "tokenizers" / name / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    parted = ((piece[:at], piece[at:]) for piece, i in pieces.items() if i > 258 for at in range(1, len(piece)))
    merges = sorted(((a, b) for a, b in parted if a in pieces and b in pieces), key=lambda m: pieces["".join(m)])
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces_to_underline()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    save(tokenizer, tmp_path)
    records = json.loads((material / "data" / "pmc_llama_instructions_1000.json").read_text())
    texts = [record["output"] for record in records]
    assert_same(texts, ids_of_program(run_uniattn, tmp_path, texts), ids_of_huggingface(tokenizer, texts))


def test_special_pieces_are_not_made_from_text(run_uniattn, tmp_path, texts):
    processor = train_sentencepiece(tmp_path, "bpe")
    special = ["<start_of_turn>", "<end_of_turn>"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": special}))
    got = ids_of_program(run_uniattn, tmp_path, texts)
    control = {processor.piece_to_id(piece) for piece in special}
    assert any(control & set(ids) for ids in processor.encode(texts)), "the texts do not spell them"
    assert not any(control & set(ids) for ids in got)
    # "▁" is what the pieces write for a space, and comes back as one.
    different = [text for text, ids in zip(texts, got) if processor.decode(ids) != text.replace("▁", " ")]
    assert not different, f"{len(different)} texts do not come back, as {different[0]!r}"


@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_published_vectors(run_uniattn, material, tmp_path, name):
    shutil.copy(material / "tokenizers" / name / "tokenizer.model", tmp_path)
    vectors = material / "tokenizers" / "vectors" / name
    # The texts' own line breaks are \r\n and \r as well: nothing may be translated.
    texts = vectors.with_suffix(".txt.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = vectors.with_suffix(".txt.out").read_text().split("\n")[: len(texts)]
    got = ids_of_program(run_uniattn, tmp_path, texts)
    assert_same(texts, got, [[int(word) for word in line.split()] for line in expected])


@pytest.mark.parametrize("bad, byte", [(b"ab\xff", 2), (b"\xc3", 0), (b"x\xed\xa0\x80", 1)])
def test_invalid_utf8_is_named(run_uniattn, tmp_path, bad, byte):
    save(byte_level(gpt2_split()), tmp_path)
    (tmp_path / "text.txt").write_bytes(b"good\n" + bad + b"\n")
    arguments = ("tokenize", "--model", tmp_path, "--text", tmp_path / "text.txt")
    run_uniattn.fails(1, *arguments, naming=["text.txt:2", f"byte {byte}"])
