"""The published init calculation of UniAttn (arXiv 2502.00439), for Llama directories, to compare with and to time.

It is reimplemented with the published code's choices, good or bad. Documents are padded to one length and no mask hides
the padding. The model runs to its end, head included, once as it is and once per follower, loaded anew each time. A
follower computes queries and keys and takes [tokens, tokens] probabilities all the same. Rows are means over documents,
one per position, in float32, and W_c = pinv(mean X) (mean target) with singular values below 1e-10 dropped.

    python -m uniattn.bench.published --model DIR --plan 2 1 5 --data RUN/data --length 256 --run OUT

--data is what `uniattn prepare` left in a run directory. Writes OUT/calibration as the program's own init calculation
does, and prints {"seconds": …, "cpu_seconds": …}, in which Python's start and its imports do not count.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, LlamaForCausalLM

CUT_OFF = 1e-10


def leaders(group, begin, end, layers):
    """{follower: leader} of the short form of a plan."""
    return {i: i - (i - begin) % group for i in range(begin, min(end, layers)) if (i - begin) % group}


def calibrate(model_path, followers, documents, length):
    """{follower: W_c [D, D] float32}; `followers` is {follower: leader}, `documents` lists of at most `length` ids."""
    base, _ = mean_rows(model_path, {}, {}, documents, length)
    found = {}
    for layer in sorted(followers):
        stream, x = mean_rows(model_path, followers, found, documents, length)
        found[layer] = (pseudo_inverse(x[layer]) @ (base[layer] - stream[layer])).T.contiguous()
    return found


def pseudo_inverse(x):
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    return vh.T @ torch.diag(torch.where(sigma > CUT_OFF, 1 / sigma, 0.0)) @ u.T


@torch.no_grad()
def mean_rows(model_path, followers, compensation, documents, length):
    """One run of a freshly loaded model: the stream after attention and the normed input, [layers, length, D]."""
    model = LlamaForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="published")
    pad = add_padding_token(model)
    shape = model.config.num_hidden_layers, length, model.config.hidden_size
    stream, x = torch.zeros(shape), torch.zeros(shape)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.lend = {} if i not in followers else model.model.layers[followers[i]].self_attn.lend
        layer.self_attn.follows = i in followers
        layer.input_layernorm.register_forward_hook(adder(x[i], lambda args, out: out))
        layer.post_attention_layernorm.register_forward_hook(adder(stream[i], lambda args, out: args[0]))
        if i in compensation:
            compensate(layer.self_attn, compensation[i])
    for ids in documents:
        model(input_ids=torch.tensor([ids + [pad] * (length - len(ids))]))
    return stream / len(documents), x / len(documents)


def adder(total, chosen):
    def hook(_, args, out):  # returns nothing: a hook's result would replace the module's output
        total.add_(chosen(args, out)[0])

    return hook


def add_padding_token(model):
    """A new last token whose embedding is the mean of the others; its id."""
    embedding = model.get_input_embeddings().weight
    pad, mean = len(embedding), embedding.mean(0)
    model.resize_token_embeddings(pad + 1, mean_resizing=False)
    model.get_input_embeddings().weight[pad] = mean
    return pad


def compensate(attention, matrix):
    attention.register_forward_hook(
        lambda _, args, kwargs, out: (out[0] + kwargs["hidden_states"] @ matrix.T, *out[1:]), with_kwargs=True
    )


def attention(module, query, key, value, attention_mask, scaling, **_):
    """Eager causal attention whose probabilities a leader lends; query [1, heads, T, head_dim], out [1, T, heads, …]."""
    if not module.follows:
        scores = query @ key.repeat_interleave(module.num_key_value_groups, 1).transpose(2, 3) * scaling
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        module.lend["probs"] = scores.masked_fill(later, -torch.inf).softmax(-1)
    probs = module.lend["probs"]
    return (probs @ value.repeat_interleave(module.num_key_value_groups, 1)).transpose(1, 2).contiguous(), probs


AttentionInterface.register("published", attention)


def read_documents(data):
    """The documents that `uniattn prepare` left under RUN/data, as lists of ids."""
    sets = [folder for folder in Path(data).iterdir() if folder.is_dir()]
    assert len(sets) == 1, f"{data} has {len(sets)} data sets, expected one: prepare calibration data alone"
    shards = sorted(sets[0].glob("shard-*.safetensors"))
    documents = []
    for shard in map(load_file, shards):
        bounds, tokens = shard["offsets"].tolist(), shard["tokens"].tolist()
        documents += [tokens[a:b] for a, b in zip(bounds, bounds[1:])]
    return documents


def write_calibration(run, layers, followers, weights):
    """RUN/calibration, from which the program exports and trains."""
    folder = Path(run) / "calibration"
    folder.mkdir(parents=True)
    save_file(
        {f"model.layers.{i}.self_attn.compensation.weight": w for i, w in weights.items()},
        folder / "weights.safetensors",
    )
    follower = {"mode": "share_probs", "compensation_rank": None}
    entries = [follower | {"leader": followers[i]} if i in followers else {"mode": "full"} for i in range(layers)]
    (folder / "plan.json").write_text(json.dumps({"uniattn": {"version": 1, "layers": entries}}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--plan", type=int, nargs=3, metavar=("GROUP", "BEGIN", "END"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--length", type=int, required=True, help="tokens that every document is padded to")
    parser.add_argument("--run", type=Path, required=True, help="run directory to write the calibration to")
    args = parser.parse_args()
    layers = json.loads((Path(args.model) / "config.json").read_text())["num_hidden_layers"]
    followers = leaders(*args.plan, layers)
    wall, cpu = time.perf_counter(), time.process_time()
    weights = calibrate(args.model, followers, read_documents(args.data), args.length)
    write_calibration(args.run, layers, followers, weights)
    print(json.dumps({"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
