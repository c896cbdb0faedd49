"""Generation: greedy tokens equal to those of `transformers`, sampling, stopping, caches, and the Python interface."""

import json
import resource
import subprocess
import sys

import pytest
import torch
import uniattn
from support.models import GEMMA2, MASK_PLANS, MISTRAL, MODE_PLANS, follower, write_base, write_unified
from support.models import FULL
from support.runs import VOCAB, random_documents, write_tokenizer
from transformers import AutoModelForCausalLM, TopKLogitsWarper, TopPLogitsWarper

# Windows and soft-caps bite within a prompt, pages of the cache (64 tokens) fill and are used again.
SHAPES = {
    "llama": {"family": "llama"},
    "mistral": MISTRAL | {"sliding_window": 40},
    "gemma2": GEMMA2 | {"sliding_window": 70},
    "llama, heads of 64": {"family": "llama", "head_dim": 64},
}
SUPERBLOCK = [FULL, follower(0, rank=None, head_map=[3, 0, 0, 2]), follower(0, rank=5), follower(0)]
CASES = [(shape, None) for shape in SHAPES]
CASES += [("llama", plan) for plan in MODE_PLANS] + [("llama, heads of 64", "superblock"), ("mistral", "superblock")]
CASES += [("mistral", "one_leader"), ("mistral", "mixed"), ("gemma2", "linear"), ("gemma2", "kv_heads")]
CASES += [("gemma2", plan) for plan in MASK_PLANS]
PLANS = MODE_PLANS | MASK_PLANS | {"superblock": SUPERBLOCK}
PROMPT_LENGTHS = [150, 1, 64, 33]
NEW_TOKENS = 200


def make(tmp_path, shape, plan):
    base = write_base(tmp_path / "base", vocab_size=VOCAB, **SHAPES[shape])
    return base if plan is None else write_unified(tmp_path / "unified", base, PLANS[plan])


def prompts(lengths=PROMPT_LENGTHS):
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def expected_tokens(path, prompt, dtype=torch.float32, count=NEW_TOKENS):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=dtype, attn_implementation="eager")
    ids = torch.tensor([prompt])
    out = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("shape, plan", CASES, ids=str)
def test_greedy_tokens_equal_those_of_transformers(tmp_path, shape, plan):
    path, batch = make(tmp_path, shape, plan), prompts()
    model = uniattn.load(path, dtype="float32")
    options = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    whole = [g.ids for g in model.generate(batch, **options)]
    assert whole == [expected_tokens(path, prompt) for prompt in batch]
    assert [g.ids for g in model.generate(batch, prefill_chunk=37, max_batch=3, **options)] == whole


def test_bfloat16_follows_its_own_prefill(tmp_path):
    """Decoding reads the caches as a prefill of the whole text would: rounding aside, every choice is the same."""
    path = make(tmp_path, "llama, heads of 64", "superblock")
    model, prompt = uniattn.load(path, dtype="bfloat16"), prompts()[0]
    ids = model.generate(prompt, max_new_tokens=60, ignore_eos=True).ids
    again = [model.generate(prompt + ids[:n], max_new_tokens=1, ignore_eos=True).ids[0] for n in range(60)]
    assert sum(a == b for a, b in zip(ids, again)) >= 57


def test_answers_do_not_depend_on_the_batch(tmp_path):
    model = uniattn.load(make(tmp_path, "gemma2", None), dtype="float32")
    options = {"max_new_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    together = model.generate(prompts(), **options)
    assert together == [model.generate(prompt, **options) for prompt in prompts()]
    assert model.generate(prompts(), **options | {"seed": 6}) != together


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 8, "top_p": 0.7}], ids=str)
def test_sampling_follows_the_distribution(tmp_path, options):
    path, prompt = make(tmp_path, "llama", None), prompts()[3]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        scores = model(torch.tensor([prompt])).logits[:, -1] / 1.5
    if "top_k" in options:
        scores = TopKLogitsWarper(options["top_k"])(None, scores)
    if "top_p" in options:
        scores = TopPLogitsWarper(options["top_p"])(None, scores)
    probabilities, draws = scores.softmax(-1)[0], 2000
    ours = uniattn.load(path)
    counts = torch.zeros(VOCAB)
    for seed in range(0, draws, 250):
        batch = [ours.generate(prompt, max_new_tokens=1, temperature=1.5, seed=seed + i, ignore_eos=True, **options) for i in range(250)]
        for one in batch:
            counts[one.ids[0]] += 1
    assert not counts[probabilities == 0].any()
    distance = (counts / draws - probabilities).abs().sum() / 2
    assert distance < 0.5 * (probabilities * (1 - probabilities) / draws).sqrt().sum() * 1.6


@pytest.fixture(scope="module")
def with_text(tmp_path_factory):
    path = write_base(tmp_path_factory.mktemp("text") / "base", vocab_size=VOCAB)
    write_tokenizer(path)
    return path


PROMPT = "the model shares one"


def test_text_streams_and_stops(with_text):
    model = uniattn.load(with_text)
    whole = model.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    assert whole.finish_reason == "length" and len(whole.ids) == 40
    assert whole.text == model.decode(whole.ids)
    assert "".join(model.stream(PROMPT, max_new_tokens=40, ignore_eos=True)) == whole.text
    assert list(model.stream(model.encode(PROMPT), max_new_tokens=40, ignore_eos=True)) == whole.ids
    stop = whole.text[10:14]
    stopped = model.generate(PROMPT, max_new_tokens=40, ignore_eos=True, stop=[stop, "never there"])
    assert stopped.text == whole.text[: whole.text.index(stop)] and stopped.finish_reason == "stop"
    assert "".join(model.stream(PROMPT, max_new_tokens=40, ignore_eos=True, stop=stop)) == stopped.text


def test_end_tokens_of_generation_config(with_text, tmp_path):
    model = uniattn.load(with_text)
    ids = model.generate(PROMPT, max_new_tokens=30, ignore_eos=True).ids
    for file in with_text.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [VOCAB - 1, ids[12]]}))
    ended = uniattn.load(tmp_path).generate(PROMPT, max_new_tokens=30)
    assert ended.ids == ids[: ids.index(ids[12])] and ended.finish_reason == "stop"


def test_the_program_streams_and_takes_batches(with_text, run_uniattn):
    whole = uniattn.load(with_text).generate(PROMPT, max_new_tokens=30)
    arguments = ("generate", "--model", with_text, "--max-new-tokens", 30)
    assert run_uniattn.run(*arguments, "--prompt", PROMPT).stdout == whole.text + "\n"
    result = run_uniattn(*arguments, "--prompt", PROMPT, "--prompt", "between", "--ids", "5 6")
    assert [g["prompt_tokens"] for g in result["generations"]][2] == 2
    assert result["generations"][0]["ids"] == whole.ids and result["generations"][0]["text"] == whole.text
    run_uniattn.fails(2, *arguments, "--ids", "5 x", naming=["--ids", "x"])
    run_uniattn.fails(2, *arguments, "--ids", str(VOCAB), naming=[VOCAB])
    run_uniattn.fails(2, *arguments, "--prompt", PROMPT, "--stop", "", naming=["stop"])


def test_errors_are_exceptions(with_text, tmp_path):
    model = uniattn.load(with_text)
    for options, naming in [({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"max_new_tokens": 0}, "max_new_tokens")]:
        with pytest.raises(ValueError, match=naming):
            model.stream(PROMPT, **options)
    with pytest.raises(ValueError, match="empty"):
        model.generate([[]])
    with pytest.raises(ValueError, match=f"{VOCAB}"):
        model.generate([VOCAB])
    with pytest.raises(ValueError, match="float8"):
        uniattn.load(with_text, dtype="float8")
    with pytest.raises(RuntimeError, match="does not exist"):
        uniattn.load(tmp_path / "nowhere")


def test_weights_that_are_not_finite_are_named(with_text, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(with_text / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((with_text / "config.json").read_bytes())
    with pytest.raises(RuntimeError, match="not finite"):
        uniattn.load(tmp_path).generate([5, 6])


@pytest.mark.parametrize("shape, plan", [("mistral", "superblock"), ("gemma2", "sliding_follows_global"), ("llama", "small_leader")])
@pytest.mark.parametrize("tokens", [40, 300])
def test_cache_bytes_are_those_that_inspect_counts(run_uniattn, tmp_path, shape, plan, tokens):
    path = make(tmp_path, shape, plan)
    ids = " ".join(map(str, prompts([tokens])[0]))
    generated = run_uniattn("generate", "--model", path, "--ids", ids, "--max-new-tokens", 1)
    assert generated["cache_bytes"] == run_uniattn("inspect", "--model", path, "--tokens", tokens)["cache_bytes"]


LONG_RUN = """
import resource, sys, uniattn
model, peaks = uniattn.load(sys.argv[1]), []
for count, _ in enumerate(model.stream([5, 6, 7], max_new_tokens=3000, ignore_eos=True)):
    if count in (600, 2999):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks)
"""


def test_memory_is_flat_with_a_window(tmp_path):
    path = make(tmp_path, "mistral", None)
    import os

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LONG_RUN, str(path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late - early < 1024  # kB
