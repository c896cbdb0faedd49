"""`generate` of transformers on the operators: the tokens of PyTorch's attention and of the program's engine."""

import os
import subprocess
import sys

import pytest
import torch
import uniattn
from support.models import FULL, GEMMA2, MASK_PLANS, MISTRAL, MODE_PLANS, follower, write_base, write_unified
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from uniattn.hf_cache import PAGE, PagedCache

# Windows and soft-caps bite within a prompt; pages fill, grow in number, and are used again under a window.
BASES = {
    "llama": {},
    "mistral": MISTRAL | {"sliding_window": 40},
    "gemma2": GEMMA2 | {"sliding_window": 70},
    "heads of 64": {"head_dim": 64},
}
PLANS = MODE_PLANS | MASK_PLANS | {"superblock": [FULL, follower(0, rank=None, head_map=[3, 0, 0, 2]), follower(0, rank=5), follower(0)]}
CASES = [("llama", plan) for plan in (*MODE_PLANS, "superblock")]
CASES += [("heads of 64", "superblock"), ("mistral", "superblock"), ("mistral", "mixed"), ("gemma2", "linear")]
CASES += [("gemma2", plan) for plan in MASK_PLANS]
LENGTHS = [150, 1, 64, 33]
NEW = 100


def make(tmp_path, base="llama", plan="superblock"):
    return write_unified(tmp_path / "unified", write_base(tmp_path / "base", **BASES[base]), PLANS[plan])


def load(path, attention="uniattn", **kwargs):
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, attn_implementation=attention, **kwargs)
    return model.eval()


def prompts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


def left_padded(rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, rows, new=NEW, **options):
    batch = left_padded(rows)
    common = {"max_new_tokens": new, "eos_token_id": None, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        return model.generate(**batch, **common | options)[:, batch["input_ids"].shape[1] :].tolist()


@pytest.fixture
def calls(monkeypatch):
    """How often each operator of generation has been called."""
    from uniattn import hf_attention

    counts = dict.fromkeys(["attention", "attend", "prefill_attention", "prefill_attend", "decode_attention", "decode_attend"], 0)

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(hf_attention, name, counted(name, getattr(hf_attention, name)))
    return counts


@pytest.mark.parametrize("base, plan", CASES)
def test_greedy_tokens_are_the_same_everywhere(tmp_path, base, plan, calls):
    path, rows = make(tmp_path, base, plan), prompts()
    plain = generate(load(path, "eager"), rows)
    assert not any(calls.values())
    ours = generate(load(path), rows)
    assert ours == plain
    engine = uniattn.load(path, dtype="float32").generate(rows, max_new_tokens=NEW, ignore_eos=True)
    assert ours == [generation.ids for generation in engine]
    layers = PLANS[plan]
    followers = sum(entry["mode"] == "share_probs" for entry in layers)
    attending = sum(entry["mode"] in ("full", "share_kv") for entry in layers)
    assert calls["decode_attention"] == attending * (NEW - 1) and calls["decode_attend"] == followers * (NEW - 1)
    assert calls["attention"] == attending and calls["attend"] == followers and calls["prefill_attention"] == 0


@pytest.mark.parametrize("base, plan", [("llama", "mixed"), ("mistral", "superblock"), ("gemma2", "global_follows_sliding")])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"use_cache": False},
        {"prefill_chunk_size": 37},
        {"cache_implementation": "static", "disable_compile": True},
        {"num_return_sequences": 2, "num_beams": 2},
    ],
    ids=str,
)
def test_other_ways_to_generate(tmp_path, base, plan, options):
    path, rows = make(tmp_path, base, plan), prompts([90, 7])
    assert generate(load(path), rows, 40, **options) == generate(load(path, "eager"), rows, 40, **options)


@pytest.mark.parametrize("base, plan", [("llama", "superblock"), ("mistral", "superblock"), ("gemma2", "sliding_follows_global")])
@pytest.mark.parametrize("way", ["assistant", "lookup"])
def test_drafts_are_taken_back(tmp_path, base, plan, way, calls):
    """Assisted decoding: several tokens behind a cache, and crops of it, beyond what a window would keep."""
    path, rows = make(tmp_path, base, plan), [prompts([30])[0] * 4]
    expected = generate(load(path, "eager"), rows, 80)
    if way == "lookup":
        options = {"prompt_lookup_num_tokens": 20}
    else:
        (tmp_path / "other").mkdir()
        draft = write_base(tmp_path / "other" / "base", seed=3, **BASES[base])
        options = {"assistant_model": load(write_unified(tmp_path / "other" / "unified", draft, PLANS[plan]))}
    assert generate(load(path), rows, 80, **options) == expected
    assert calls["prefill_attention"] > 0


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_caches_of_ones_own(tmp_path, cache, calls):
    """They are filled and read as everywhere in `transformers`: by PyTorch's attention."""
    model, rows = load(make(tmp_path)), prompts([70, 70])
    options = {"config": model.config} | ({"max_cache_len": 120} if cache is StaticCache else {})
    expected = generate(load(tmp_path / "unified", "eager"), rows, 40)
    mine = cache(**options)
    assert generate(model, rows, 40, past_key_values=mine, disable_compile=True) == expected
    assert int(mine.get_seq_length()) == 70 + 39 and not any(calls.values())


@pytest.mark.parametrize("base", ["llama", "mistral"])
def test_a_conversation_goes_on_in_its_cache(tmp_path, base, calls):
    """Chunks of any size behind a ragged batch, single tokens with padding among them included."""
    path = make(tmp_path, base)
    model, plain = load(path), load(path, "eager")
    ids = torch.randint(3, 97, (3, 200), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :90], mask[1, :3], mask[2, 120:130] = 0, 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = plain(ids[:, :120], attention_mask=mask[:, :120], position_ids=positions[:, :120], use_cache=True)
    cache, logits = None, []
    with torch.no_grad():
        for begin, end in [(0, 70), (70, 71), (71, 75), (75, 119), (119, 120), (120, 121), (121, 131), (131, 200)]:
            chunk = slice(begin, end)
            out = model(
                ids[:, chunk], attention_mask=mask[:, :end], position_ids=positions[:, chunk], past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            logits.append(out.logits)
        whole = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    logits, real = torch.cat(logits, 1), mask.bool()
    assert isinstance(cache, PagedCache) and cache.get_seq_length() == 200
    torch.testing.assert_close(logits[real], whole[real], rtol=1e-4, atol=1e-4)
    before = real[:, :120]
    torch.testing.assert_close(logits[:, :120][before], expected.logits[before].detach(), rtol=1e-4, atol=1e-4)
    assert all(calls.values())


def test_the_cache_is_laid_out_by_the_plan(tmp_path):
    model = load(make(tmp_path, plan="one_leader"))
    cache = model(torch.tensor(prompts([130])), use_cache=True).past_key_values
    kept = [(layer.keys is not None, layer.values is not None) for layer in cache.layers]
    assert kept == [(True, True), (False, True), (False, False), (False, True)]
    assert cache.layers[1].values.shape == (3, 2, PAGE, 12)


def test_a_window_bounds_the_cache(tmp_path):
    model = load(make(tmp_path, "mistral"))
    options = {"eos_token_id": None, "do_sample": False}  # and no pad token, which would be taken for padding
    prompt = torch.tensor(prompts([300, 300]))
    first = model.generate(prompt, max_new_tokens=150, return_dict_in_generate=True, **options)
    assert {len(layer.values) for layer in first.past_key_values.layers} == {2 * 2}  # 40 tokens: two pages for each row
    more = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=30, **options)
    assert torch.equal(more, model.generate(prompt, max_new_tokens=180, **options))
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        first.past_key_values.crop(-3)


def test_rows_of_the_cache(tmp_path):
    model, rows = load(make(tmp_path)), torch.tensor(prompts([70, 70]))
    with torch.no_grad():
        cache = model(rows, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        cache.crop(-10)
        logits = model(rows.flip(0)[:, 60:], past_key_values=cache).logits
        assert cache.batch_size == 2 and cache.get_seq_length() == 70
        torch.testing.assert_close(logits, model(rows.flip(0)).logits[:, 60:], rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="batch of 2, and this one is of 1"):
            model(rows[:1, :1], past_key_values=cache)
        cache.reset()
        torch.testing.assert_close(model(rows[:1], past_key_values=cache).logits, model(rows[:1]).logits)


def test_a_forward_pass_that_fills_a_cache_has_gradients(tmp_path):
    path, ids, gradients = make(tmp_path), torch.tensor(prompts([40, 40])), []
    for use_cache in (False, True):
        model = load(path)
        model(ids, labels=ids, use_cache=use_cache).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


def test_bfloat16_follows_its_own_prefill(tmp_path):
    """Steps read the cache as one pass over the whole text would: rounding aside, every choice is the same."""
    model, row = load(make(tmp_path, "heads of 64"), dtype=torch.bfloat16), prompts([150])[0]
    chosen = generate(model, [row], 60)[0]
    with torch.no_grad():
        again = model(torch.tensor([row + chosen]), use_cache=False).logits[0, len(row) - 1 : -1].argmax(1).tolist()
    assert sum(a == b for a, b in zip(chosen, again)) >= 57


def test_operators_are_the_default_where_they_are_installed(tmp_path):
    path = make(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    assert model.config._attn_implementation == ("sdpa" if torch.cuda.is_available() else "uniattn")


WITHOUT = """
import sys, torch
sys.modules["uniattn"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert model.config._attn_implementation == "sdpa"
ids = torch.tensor([[int(i) for i in sys.argv[2].split()]])
print(model.generate(ids, max_new_tokens=40, eos_token_id=None, do_sample=False, pad_token_id=0)[0, ids.shape[1]:].tolist())
"""


def test_the_same_tokens_without_the_package(tmp_path):
    path, rows = make(tmp_path), prompts([64])
    command = [sys.executable, "-c", WITHOUT, str(path), " ".join(map(str, rows[0]))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(generate(load(path), rows, 40)[0])
