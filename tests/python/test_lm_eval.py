"""lm-eval's command line on unified directories and a local task, against `uniattn eval`."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from support.models import FULL, follower, linear, write_base, write_unified, write_word_tokenizer

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
PLANS = {
    "share_probs": [FULL, follower(0, rank=None, head_map=[3, 0, 0, 2]), FULL, follower(2, rank=5)],
    "others": [FULL, follower(0, "share_kv"), linear(4), {"mode": "skip"}],
}


def by_lm_eval(model, tokenizer, folder):
    """Log-likelihoods of the answers, in the order of SAMPLES."""
    words = lambda ids: " ".join(f"w{i}" for i in ids)
    data, tasks, results = folder / "data.jsonl", folder / "tasks", folder / "results"
    data.write_text("".join(json.dumps({"question": words(q), "answer": words(a)}) + "\n" for q, a in SAMPLES))
    tasks.mkdir()
    (tasks / "words.yaml").write_text(TASK.format(data=data))
    command = [
        "run", "--model", "hf", "--model_args", f"pretrained={model},tokenizer={tokenizer},trust_remote_code=True,dtype=float32",
        "--device", "cpu", "--batch_size", "2", "--tasks", "words", "--include_path", tasks, "--output_path", results, "--log_samples",
    ]  # fmt: skip
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "lm_eval", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (samples,) = results.rglob("samples_words_*.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    return [float(line["resps"][0][0][0]) for line in lines]


def by_uniattn(run_uniattn, model, folder):
    ids, logits = folder / "data.ids", folder / "logits.safetensors"
    ids.write_text("".join(" ".join(map(str, q + a)) + "\n" for q, a in SAMPLES))
    run_uniattn("eval", "--model", model, "--ids", ids, "--logits", logits)
    sizes = [len(q + a) for q, a in SAMPLES]
    logprobs = load_file(logits)["logits"].log_softmax(-1).split(sizes)
    return [sum(rows[len(q) - 1 + i, token].item() for i, token in enumerate(a)) for rows, (q, a) in zip(logprobs, SAMPLES)]


@pytest.mark.parametrize("plan", PLANS)
def test_log_likelihoods(run_uniattn, tmp_path, plan):
    pytest.importorskip("lm_eval")
    tokenizer = tmp_path / "tokenizer"
    write_word_tokenizer(tokenizer)
    model = write_unified(tmp_path / "model", write_base(tmp_path / "base"), PLANS[plan])
    assert by_lm_eval(model, tokenizer, tmp_path) == pytest.approx(by_uniattn(run_uniattn, model, tmp_path), abs=1e-4)
