"""Prepared conversations are what `transformers` makes of them: every template, its tokens and its labels."""

import json
import random
import shutil

import pytest
from jinja2 import TemplateError
from support.models import write_base
from support.prepared import prepare
from support.runs import Project
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPECIAL = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<start_of_turn>",
           "<end_of_turn>", "<|im_start|>", "<|im_end|>"]  # fmt: skip
# Each format in a few words of Jinja. GAP stands for a line break, which Jinja would trim after a block.
JINJA = {
    "tulu": "{% for m in messages %}<|{{ m.role }}|>GAP{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}{% if not loop.last %}GAP{% endif %}{% endfor %}",
    "llama3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>GAPGAP{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}",
    "llama3.1": "{{ bos_token }}<|start_header_id|>system<|end_header_id|>GAPGAPCutting Knowledge Date: December 2023GAP"
    "Today Date: 26 Jul 2024GAPGAP{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}<|eot_id|>"
    "{% for m in messages if m.role != 'system' %}<|start_header_id|>{{ m.role }}<|end_header_id|>GAPGAP{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}GAP"
    "{{ m.content | trim }}<end_of_turn>GAP{% endfor %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}GAP{{ m.content }}<|im_end|>GAP{% endfor %}",
    "llama2": "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and messages[0].role == 'system' %}{{ ('<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' + m.content).strip() }}"
    "{% else %}{{ m.content.strip() }}{% endif %} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %} [INST] "
    "{% if loop.first and messages[0].role == 'system' %}{{ messages[0].content }}GAPGAP{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "mistral-v0.3": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
    "plain": "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}",
}
WITHOUT_SYSTEM = {"gemma", "mistral-v0.3"}


def byte_level_tokenizer(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *special], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the model answers the user's question", "assistant user system"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def conversations(count, system):
    generator = random.Random(3)
    words = ["the", " model ", "answers", "\n", "\n\n", "  ", " é😀", "user", "'s", "12345", "日本", ":", "-", "\u00a0", "|", "assistant"]
    text = lambda: generator.choice(["q", "The"]) + "".join(generator.choices(words, k=generator.randint(0, 12)))
    for i in range(count):
        roles = ["system"] * (system and i % 2) + ["user", "assistant"] * generator.randint(1, 3)
        yield [{"role": role, "content": text()} for role in roles]


@pytest.fixture(params=JINJA)
def template(request):
    return request.param


def write_conversations(file, chats):
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return file


def test_ids_and_labels(run_uniattn, tmp_path, template):
    special = [] if template in ("llama2", "mistral") else SPECIAL  # where [INST] is text
    tokenizer = byte_level_tokenizer(special)
    base = write_base(tmp_path / "base", vocab_size=len(tokenizer))
    tokenizer.chat_template = JINJA[template].replace("GAP", "{{ '\\n' }}")
    tokenizer.save_pretrained(base)
    chats = list(conversations(60, template not in WITHOUT_SYSTEM))
    file = write_conversations(tmp_path / "chats.jsonl", chats)
    source = {"path": str(file), "format": "messages", "template": template}
    counts, found = prepare(run_uniattn, Project(tmp_path, base), [source])
    assert counts["kept"] == len(chats)
    for chat, (ids, labels) in zip(chats, found, strict=True):
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
        bos = "" if rendered.startswith("<s>") else "<s>"
        text = bos + rendered
        assert tokenizer.decode(ids) == text
        check_labels(tokenizer, chat, labels, template)
        whole = tokenizer(text, add_special_tokens=False).input_ids
        # They differ in nothing but where a token would have reached from a prompt into an answer.
        assert ids == whole or len(ids) > len(whole)
        if template in ("llama3", "llama3.1", "gemma", "chatml", "llama2", "mistral", "mistral-v0.3"):
            assert ids == whole


@pytest.mark.parametrize("name", [*JINJA, "alpaca"])
def test_an_export_brings_the_template_that_it_was_trained_on(run_uniattn, tmp_path, name):
    tokenizer = byte_level_tokenizer([] if name in ("llama2", "mistral") else SPECIAL)
    base = write_base(tmp_path / "base", vocab_size=len(tokenizer))
    tokenizer.chat_template = "{{ messages[-1].content }}"  # the base's, another one
    tokenizer.save_pretrained(base)
    chats = list(conversations(20, system=name != "gemma"))
    source = {"path": str(write_conversations(tmp_path / "chats.jsonl", chats)), "format": "messages", "template": name}
    project = Project(tmp_path, base)
    _, documents = prepare(run_uniattn, project, [source])
    stages = [{"name": "all", "train": "all", "max_steps": 1, "learning_rate": 1.0e-3}]
    data = {"train": [source], "max_length": 512}
    config, run = project.config("run", plan=None, calibration=None, data=data, stages=stages)
    run_uniattn("run", config)
    exported = AutoTokenizer.from_pretrained(run / "export")
    for chat, (ids, _) in zip(chats, documents, strict=True):
        text = exported.apply_chat_template(chat, tokenize=False)
        assert text == exported.decode(ids)
        assert text.startswith(exported.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True))
    if name == "gemma":
        with pytest.raises(TemplateError, match="no system message"):
            exported.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_an_export_keeps_the_template_of_its_base(run_uniattn, project):
    """Trained on what is no conversation, or on nothing."""
    folder = project.folder / "with_template"
    shutil.copytree(project.model, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    for name, stages in (("trained", {}), ("only_calibrated", {"stages": []})):
        config, run = Project(project.folder, folder).config(name, **stages)
        run_uniattn("run", config)
        assert (run / "export" / "chat_template.jinja").read_text() == "{{ messages[-1].content }}"


def check_labels(tokenizer, chat, labels, template):
    """What is learnt is every answer as the template writes it, and its end."""
    answers = [m["content"] for m in chat if m["role"] == "assistant"]
    strips = template in ("llama2", "llama3", "llama3.1", "gemma", "mistral-v0.3")
    answers = [a.strip() if strips else a for a in answers]
    end = {"gemma": "<end_of_turn>", "chatml": "<|im_end|>"}.get(template, "<|eot_id|>" if "llama3" in template else "</s>")
    before, after = {"llama2": (" ", " "), "mistral": (" ", ""), "mistral-v0.3": (" ", "")}.get(template, ("", ""))
    expected = "".join(before + a + after + end for a in answers)
    assert tokenizer.decode([i for i in labels if i != -100]) == expected


def test_special_spellings_in_messages_are_text(run_uniattn, tmp_path):
    tokenizer = byte_level_tokenizer(SPECIAL)
    base = write_base(tmp_path / "base", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(base)
    chat = [{"role": "user", "content": "a <|eot_id|> b </s>"}, {"role": "assistant", "content": "<|start_header_id|> <s>"}]
    file = write_conversations(tmp_path / "chats.jsonl", [chat])
    _, [(ids, _)] = prepare(run_uniattn, Project(tmp_path, base), [{"path": str(file), "format": "messages", "template": "llama3"}])
    control = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<|eot_id|>", "<|start_header_id|>")}
    assert {token: ids.count(i) for token, i in control.items()} == {
        "<s>": 1, "</s>": 0, "<|eot_id|>": 2, "<|start_header_id|>": 2,
    }  # fmt: skip
    assert tokenizer.decode(ids).count("<|eot_id|>") == 3


def test_a_template_that_does_not_fit_the_tokenizer_is_refused(run_uniattn, project, tmp_path):
    (project.folder / "chats.jsonl").write_text('{"messages": []}\n')
    tokenizer = byte_level_tokenizer([])
    base = write_base(tmp_path / "base", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(base)
    source = {"path": str(project.folder / "chats.jsonl"), "format": "messages", "template": "gemma"}
    config, _ = Project(tmp_path, base).config("bad", plan=None, calibration=None, stages=None, data={"train": [source]})
    run_uniattn.fails(1, "prepare", config, naming=["gemma", "<start_of_turn>"])
    run_uniattn.fails(2, "prepare", config, "data.train.0.template=vicuna", naming=["vicuna", "llama3"])
