"""What the YAML files of all roles share."""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedpeft import codecs, data, strategies
from fedpeft.errors import ConfigError
from fedpeft.training.models import MINILM


def expression(parse: Callable[[str], object]) -> BeforeValidator:
    """A field that holds the text of an expression; `parse` raises ConfigError for a wrong one."""

    def check(value: object) -> object:
        """An object of the kind stands for its own expression."""
        text = repr(value) if isinstance(value, _EXPRESSED) else value
        if isinstance(text, str):
            try:
                parse(text)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return text

    return BeforeValidator(check)


_EXPRESSED = (codecs.Codec, codecs.ErrorFeedback, strategies.Strategy, data.Source, data.Partition)


class Section(BaseModel):
    """A frozen part of a YAML that knows its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The base model.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        task: what it is fine-tuned for.
        max_length: tokens that an example is cut to.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: of the frozen base and of activations; the adapter stays in float32.
        threads: of torch, on the CPU.
    """

    name: str = MINILM
    task: Literal["sequence-classification", "causal-lm"] = "sequence-classification"
    max_length: int = Field(48, ge=2)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1)
