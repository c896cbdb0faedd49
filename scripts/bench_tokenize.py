"""Tokenizer throughput: `uniattn tokenize` beside Hugging Face tokenizers and sentencepiece, two threads each.

    UNIATTN_MATERIAL=DIR python scripts/bench_tokenize.py

The text is Python source and its documentation on this machine, about 50 MB, one line a text. Ours is the whole program:
start, loading the tokenizer, reading, tokenizing, writing ids; the peers encode a list of lines that is in memory, with
loading left out. Rounds are interleaved; the table shows medians. The tokenizers are those of Llama-3 and Llama-2 in the
material; without it, ones of 8,192 tokens trained on a part of the text.
"""

import argparse
import json
import os
import statistics
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

THREADS = 2
os.environ["RAYON_NUM_THREADS"] = str(THREADS)  # before tokenizers starts its threads

import sentencepiece
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter, import_protobuf

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
