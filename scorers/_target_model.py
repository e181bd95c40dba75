"""What scorers share whose model compares documents as vectors: a folder of arrays, a card, and an encoder."""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from scorers import Scorer
from scorers._columns import texts
from transforms.model_folder import read_card

if TYPE_CHECKING:
    from transforms.batch import Batch
    from transforms.embedding import Embedding


class Loaded(NamedTuple):
    """A model folder that was read and found whole."""

    embedding: Embedding
    card: dict[str, Any]
    arrays: dict[str, np.ndarray]


class TargetScorer(Scorer):
    """`model`: the folder that the fit of the scorer's name makes: `card.json`, `model.npz` and maybe an encoder.

    `arrays` names the arrays of `model.npz`, each with type and letters of its shape; `d` is a vector's width, of what
    has a capital letter there may be none.
    """

    arrays: ClassVar[dict[str, tuple[type, str]]]
    model: Path

    @model_validator(mode="after")
    def _whole(self) -> TargetScorer:
        _ = self._loaded
        return self

    def check(self, loaded: Loaded) -> None:
        """Raises ValueError, LookupError or TypeError: card or values are not those of such a model."""

    @cached_property
    def _loaded(self) -> Loaded:
        loaded = _load(self.model, self.name, self.arrays)
        try:
            self.check(loaded)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{self.model} is no model of {self.name}: {error!r}; fit it anew") from error
        return loaded

    def setup(self) -> None:
        _ = self._loaded


class ClusterScorer(TargetScorer):
    """Such a scorer that tells a document's cluster: the nearest of the model's `centroids` or, where the fit took
    `classes` from a column of the shards, the class that the same column here names.
    """

    classes: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.classes,) if self.classes else ()

    def check(self, loaded: Loaded) -> None:
        fitted = loaded.card.get("classes")
        if fitted != self.classes:
            raise ValueError(f"fitted with `classes: {fitted}`, here it is `classes: {self.classes}`; give the same")
        if fitted and len(loaded.card["names"]) != len(loaded.arrays["centroids"]):
            raise ValueError("as many names as centroids are expected")

    def clusters(self, batch: Batch) -> np.ndarray:
        """int64 [documents]: numbers of clusters, -1 without words or with a class that the fit did not see."""
        from transforms.feature_mapping import nearest

        model = self._loaded
        if self.classes:
            names = pa.array(model.card["names"], pa.large_string())
            return pc.fill_null(pc.index_in(texts(batch, self.classes), names), -1).to_numpy().astype(np.int64)
        vectors = model.embedding.vectors(batch.text)
        return np.where(vectors.any(axis=1), nearest(vectors, model.arrays["centroids"]), -1)


def _load(folder: Path, name: str, expected: dict[str, tuple[type, str]]) -> Loaded:
    """Raises ValueError: files are missing or broken, or arrays of another type or shape than expected."""
    from transforms.embedding import Embedding

    try:
        card = read_card(folder)
        given = dict(card["embedding"])
        with np.load(folder / "model.npz", allow_pickle=False) as held:
            arrays = {array: held[array] for array in expected}
    except (OSError, EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
        wanted = f"give a folder that the fit {name} made, with card.json and model.npz"
        raise ValueError(f"no model of {name} at {folder} ({error!r}); {wanted}") from error
    embedding = Embedding.kept(folder, given)
    sizes = {"d": embedding.width()}
    for array, (kind, shape) in expected.items():
        found = arrays[array]
        agrees = found.dtype == kind and len(found.shape) == len(shape) and (found.size > 0 or shape != shape.lower())
        if not agrees or any(sizes.setdefault(s, n) != n for s, n in zip(shape, found.shape, strict=True)):
            asked = ", ".join([f"{kind.__name__} [{', '.join(shape)}]", *(f"{s} = {n}" for s, n in sizes.items())])
            raise ValueError(f"{folder}/model.npz: {array} is {found.dtype} {found.shape}, expected {asked}; fit anew")
    return Loaded(embedding, card, arrays)
