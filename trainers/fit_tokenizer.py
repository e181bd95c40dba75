"""Training a byte-level BPE tokenizer on a sample of the corpus (Sennrich et al. 2016; byte level as in GPT-2)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from trainers.fits import Fit, Wanted

if TYPE_CHECKING:
    import pyarrow as pa

END = "<|endoftext|>"


class FitTokenizer(Fit):
    """A byte-level BPE tokenizer of `vocabulary` tokens, from `megabytes` of documents where `where` holds."""

    method: ClassVar[str] = "tokenizer"
    readers: ClassVar[tuple[str, ...]] = ("tokens", "statistics")
    package: ClassVar[str] = "tokenizers"
    vocabulary: int = Field(8192, ge=257)
    where: str = "true"
    megabytes: float = Field(20, gt=0)

    def samples(self) -> dict[str, Wanted]:
        return {"documents": Wanted(self.where, megabytes=self.megabytes)}

    def fit(self, samples: Mapping[str, pa.Table], out: Path, seed: int) -> dict[str, Any]:
        texts = samples["documents"].column("text").to_pylist()
        fit_tokenizer(texts, out, self.vocabulary)
        card = {"parameters": {"vocabulary": self.vocabulary}, "documents": {"all": len(texts)}}
        (out / "card.json").write_text(json.dumps(card, indent=1))
        return card


def fit_tokenizer(texts: Iterable[str], out: Path, vocabulary: int = 8192, digits: bool = False) -> Path:
    """Train on texts in their order and write `out/tokenizer.json`; the same texts give the same file.

    Args:
        vocabulary: number of tokens, the 256 bytes and the end-of-text token included; at least 257.
        digits: every digit is a token of its own, for models that have to copy numbers they have not seen.

    Raises:
        ValueError: the vocabulary cannot hold all bytes.
    """
    if vocabulary < 257:
        raise ValueError(f"vocabulary of {vocabulary} tokens cannot hold 256 bytes and {END}; ask for 257 or more")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alone = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, bytes_]) if digits else bytes_
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "tokenizer.json.tmp"
    tokenizer.save(str(temporary))
    temporary.replace(out / "tokenizer.json")
    settings = {"eos_token": END, "bos_token": END, "model_max_length": 1_000_000}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return out
