"""A tiny real model, tokenizer and task, built here: no download, a fraction of a second to train."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

COLOURS = ("red", "green", "blue", "grey")
WORDS = ("[PAD]", "[UNK]", "the", "a", "is", "sky", "leaf", "rose", "stone", "today", "very", *COLOURS)


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)


def bert_config() -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.4, hidden_dropout_prob=0.0,
    )  # fmt: skip


def llama_config() -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=32, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def save_bert(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.BertModel(bert_config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_llama(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(llama_config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_colours(path: Path, copies: int = 6) -> Path:
    """Sentences labelled with the colour that is in them."""
    nouns = ("sky", "leaf", "rose", "stone")
    rows = [
        {"text": f"{('the', 'a')[i % 2]} {noun} is {'very ' * (i % 3)}{colour}", "label": colour, "team": noun}
        for i in range(copies)
        for noun in nouns
        for colour in COLOURS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def experiment(folder: Path, **more: object) -> dict[str, object]:
    """A whole experiment on the tiny BERT, as the dictionary that a YAML holds; files go into `folder`."""
    base, data = folder / "base", folder / "colours.jsonl"
    if not base.exists():
        save_bert(base)
        save_colours(data)
    raw: dict[str, object] = {
        "name": "tiny",
        "sites": 3,
        "rounds": 3,
        "model": {"name": str(base), "max_length": 16, "threads": 1},
        "peft": "LoraConfig(r=2, lora_alpha=4, target_modules=['query', 'value'], lora_dropout=0.1)",
        "data": {"source": f"LocalFile({str(data)!r}, label='label', group='team')", "partition": "IID()"},
        "training": {"local_steps": 2, "batch_size": 4, "learning_rate": 1e-2},
        "server_optimizer": "SGD(lr=1.0, momentum=0.9, nesterov=True)",
    }
    return raw | more
