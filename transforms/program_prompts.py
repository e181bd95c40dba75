"""What a language model is asked, that it may write ProX's programs (Zhou et al. 2024, arXiv 2409.17115).

Chunks are lines with the numbers they have in the document, between `[doc]` and `[/doc]`; documents are raw text. The
published refiners are given these alone, behind one system line; models that were not taught to are told the language.
A model folder that a fit of this project made keeps the prompts it was taught with, in FILE.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from transforms.parameters import Parameters
from transforms.programs import numbered_lines

if TYPE_CHECKING:
    from transforms.batch import Batch

FILE = "program_prompts.yaml"
PLACE = "{text}"


class ProgramPrompts(Parameters):
    """`system`, where not empty, and `chunk` or `document` are the conversation; `{text}` in these is the numbered
    chunk or the text. `version` rises with the words.

    `chunk_tokens`: of the lines of a chunk at most, with their numbers. `document_tokens`: of a text, from its
    beginning; what the prompt says behind it stays. `line`: characters that are shown of a line, its beginning and its
    end; null: all. `numbers`: they stand before their lines or after them, where small models find a line by its number
    sooner: what is read last knows what stood before. `output_tokens`: of a program at most.

    The defaults are ProX's: the prompts of its published refiners, 1,500, 2,000 and 256 tokens.
    """

    version: int = Field(default=1, ge=1)
    system: str = "You are a helpful, respectful and honest assistant."
    chunk: str = PLACE
    document: str = PLACE
    chunk_tokens: int = Field(default=1500, ge=16)
    document_tokens: int = Field(default=2000, ge=16)
    line: int | None = Field(default=None, ge=8)
    numbers: Literal["before", "after"] = "before"
    output_tokens: int = Field(default=256, ge=8)

    @field_validator("chunk", "document")
    @classmethod
    def _filled(cls, value: str) -> str:
        if value.count(PLACE) != 1:
            raise ValueError(f"has {PLACE} {value.count(PLACE)} times; expected once, where the text goes")
        return value

    def lines(self, batch: Batch, document: int) -> list[str]:
        """The lines of a document as they are shown."""
        return numbered_lines(batch, document, self.line, self.numbers == "after")

    def of_chunk(self, numbered: str) -> tuple[tuple[str, str], ...]:
        """The conversation that asks for the program of a chunk (`transforms.programs.numbered`)."""
        return self._messages(self.chunk, numbered)

    def of_document(self, text: str) -> tuple[tuple[str, str], ...]:
        """The one that asks whether a document stays."""
        return self._messages(self.document, text)

    def _messages(self, user: str, text: str) -> tuple[tuple[str, str], ...]:
        before, after = user.split(PLACE)
        system = (("system", self.system),) if self.system else ()
        return (*system, ("user", f"{before}{text}{after}"))

    def save(self, folder: Path) -> None:
        """Write FILE."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)
        (folder / FILE).write_text(text, encoding="utf-8")


def read_prompts(path: Path) -> ProgramPrompts:
    """The prompts in a file, or in FILE of a folder.

    Raises:
        ValueError: it cannot be read, or holds something else; the message names the key.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return ProgramPrompts.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as prompts for programs: {error}") from error
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{file}: {told}; there are {', '.join(ProgramPrompts.model_fields)}") from error


# For models that know nothing of the language: those that write programs for others to learn from.
SEED = ProgramPrompts(
    system="You clean web pages for a corpus that language models learn from. You answer with calls alone.",
    chunk=f"""Each line of this part of a page begins with its number in brackets.

{PLACE}

Name the lines that are no part of what the page is about: menus and navigation, links and buttons ("Read more",
"Share"), headings of lists of other articles, forms, footers, copyright, cookie notices, lists of references.
Lines of the text itself stay, also short ones: titles, authors, dates, headings, captions, quotations, code, tables.

Answer with these calls and nothing else, one to a line, in the order of the lines:
remove_lines(first, last)       removes these lines and all between them
normalize("source", "target")   replaces a piece of a line that is noise within text; an empty target removes it
keep_chunk()                    where everything stays""",
    document=f"""{PLACE}

That was a page, or its beginning. Should it be in a corpus that language models learn from? It should if it explains or
tells something in whole sentences and is well formed. It should not if it is a menu, a list of links or products, spam,
an error message, or garbled.

Answer with one call and nothing else: keep_doc() or drop_doc()""",
)
