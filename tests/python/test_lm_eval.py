"""lm-eval's `hf` loader on a unified directory, on a local task."""

import json

import pytest
from support.models import follower, write_base, write_unified, write_word_tokenizer
from support.oracle import Oracle

lm_eval = pytest.importorskip("lm_eval")

TASK = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: "{data}"}}
output_type: loglikelihood
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{answer}}}}"
metric_list: [{{metric: perplexity, aggregation: perplexity, higher_is_better: false}}]
"""
SAMPLES = [([5, 6, 7, 8], [9, 10]), ([5, 16, 7, 8, 3], [19, 10, 44]), ([55, 7], [4, 8])]


def test_log_likelihoods(tmp_path):
    write_word_tokenizer(tmp_path / "tokenizer")
    plan = [{"mode": "full"}, follower(0, rank=None, head_map=[3, 0, 0, 2]), {"mode": "full"}, follower(2, rank=5)]
    path = write_unified(tmp_path / "unified", write_base(tmp_path / "base"), plan, tokenizer=tmp_path / "tokenizer")
    words = lambda ids: " ".join(f"w{i}" for i in ids)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": words(q), "answer": words(a)}) + "\n" for q, a in SAMPLES))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "words.yaml").write_text(TASK.format(data=data))
    tasks = pytest.importorskip("lm_eval.tasks").TaskManager(
        include_path=str(tmp_path / "tasks"), include_defaults=False
    )
    results = lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={path},trust_remote_code=True,dtype=float32", device="cpu",
        tasks=["words"], task_manager=tasks, batch_size=2, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    found = [sample["resps"][0][0][0] for sample in results["samples"]["words"]]
    assert found == pytest.approx([log_likelihood(Oracle(path), *sample) for sample in SAMPLES], abs=1e-4)


def log_likelihood(oracle, context, answer):
    logprobs = oracle.logits(context + answer).log_softmax(-1)
    return sum(logprobs[len(context) - 1 + i, token].item() for i, token in enumerate(answer))
