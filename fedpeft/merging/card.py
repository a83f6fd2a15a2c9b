"""The README.md of a merged adapter: what it was made of, and how."""

import json

from fedpeft import __version__
from fedpeft.adapters import Adapter
from fedpeft.merging.sources import Source, Sources

_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def card(adapter: Adapter, how: str, sources: Sources, seed: int) -> str:
    """Markdown, with the front matter that the hub reads.

    Args:
        adapter: the merged one.
        how: the strategy's expression, or what was done instead.
        sources: the adapters.
        seed: of strategies that draw at random.
    """
    base = adapter.config.get("base_model_name_or_path") or ""
    kind = _CLASSES.get(str(adapter.config.get("task_type")), "AutoModel")
    more = f", num_labels={len(sources.labels)}" if sources.labels else ""
    lines = [
        "---",
        *([f"base_model: {json.dumps(base)}"] if base else []),
        "library_name: peft",
        "---",
        "",
        f"# A merge of {len(sources)} adapters{f' of {base}' if base else ''}",
        "",
        f"Made with fedpeft {__version__}: {_code(how)}, {_of_what(sources)}, seed {seed}.",
        "",
        "| adapter | weight | SHA-256 of adapter_model.safetensors |",
        "|---|---|---|",
        *(f"| {_code(_name(row))} | {row.weight:g} | `{row.sha256}` |" for row in sources.rows),
        "",
        *(["`labels.json` names the classes in order.", ""] if sources.labels else []),
        "```python",
        "from peft import PeftModel",
        f"from transformers import {kind}",
        "",
        f"base = {kind}.from_pretrained({json.dumps(base or 'BASE')}{more})",
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _of_what(sources: Sources) -> str:
    if sources.origin is None:
        return "of whole adapters"
    return f"of what they changed of {_code(_name(sources.origin))} (SHA-256 `{sources.origin.sha256}`)"


def _name(row: Source) -> str:
    """The folder's own name; where it lies is the owner's affair."""
    return row.folder.resolve().name


def _code(text: str) -> str:
    """Text from outside, as code in one line that cannot end before it does."""
    plain = " ".join(text.split()).replace("|", "\\|")
    fence = "``" if "`" in plain else "`"
    space = " " if fence == "``" else ""
    return f"{fence}{space}{plain}{space}{fence}"
