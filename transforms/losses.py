"""Loss, entropy and rank of every token of documents under a causal language model; in nats.

Documents are tokenised, cut into windows and packed into rows of one length, best fit (see `transforms.packing`), so
next to nothing is padding. The logits of CHUNK_NUMBERS / vocabulary tokens are held at a time, and only of tokens whose
loss is wanted.

Convention of the first token: the model's begin-of-text token, where it has one, stands before each document, and every
token of the document is scored; else the first token is context only. No end of text is scored.

Convention of long documents: windows of `window` tokens begin every `stride` tokens; each token is scored once, in the
first window that holds it and the token before it. So beyond the first window a token has at least `window - stride`
tokens of context. (The begin-of-text token stands in the first window alone.)

Memory is that of a row's activations per thread, one chunk of logits, and about 40 bytes for each of LOT tokens: flat
in the length of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import pad

from transforms.causal_model import CausalModel
from transforms.packing import pack, split_lengths
from transforms.pieces import groups

ROW = 1024  # tokens, or the window where that is longer
ROW_GPU = 16_384
LOT = 1 << 18  # tokens that are packed together
CHUNK_NUMBERS = 1 << 21  # of logits: 8 MB


@dataclass(frozen=True)
class TokenLosses:
    """Scored tokens, in order of documents and of tokens within them; a document may go on in the next of these."""

    document: np.ndarray  # int64 [tokens], number of the document
    loss: np.ndarray  # float32 [tokens], -log p of the token, nats
    entropy: np.ndarray  # float32 [tokens], of the distribution that the token was drawn from, nats
    rank: np.ndarray  # int32 [tokens], how many tokens the model held for likelier


@dataclass(frozen=True)
class Lot:
    """Sequences of tokens (parts of documents) end to end, to be scored together."""

    tokens: np.ndarray  # int64 [tokens]
    document: np.ndarray  # int64 [tokens]
    wanted: np.ndarray  # bool [tokens]: its loss is asked for

    @classmethod
    def nothing(cls) -> Lot:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.tokens, self.document, self.wanted

    def joined(self, other: Lot) -> Lot:
        pairs = zip(self.arrays, other.arrays, strict=True)
        return Lot(*(np.concatenate(pair) for pair in pairs))

    def after(self, place: int) -> Lot:
        return Lot(*(array[place:] for array in self.arrays))


@dataclass(frozen=True)
class Windows:
    """What the model reads of a lot: input i of a window predicts the token after it."""

    start: np.ndarray  # int64 [windows], place of the first input in the lot
    length: np.ndarray  # int64 [windows], inputs
    context: np.ndarray  # int64 [windows], inputs at its start whose predictions an earlier window made


def token_losses(
    model: CausalModel,
    texts: pa.LargeStringArray,
    window: int,
    stride: int,
    prompts: pa.LargeStringArray | None = None,
) -> Iterator[TokenLosses]:
    """Losses and entropies of the tokens of documents.

    Args:
        texts: one per document, without nulls.
        window: tokens that the model reads at once, the begin-of-text token included.
        stride: tokens between the starts of windows, less than `window`.
        prompts: one per document: text that stands before it as context and is not scored. The two are tokenised each
            for itself.

    Raises:
        ValueError: a stride outside 1..window - 1, or numbers that are no losses (the model's weights are broken).
    """
    kinds = (np.float32, np.float32, np.int32)
    for lot, windows, row in lots(model, texts, window, stride, prompts):
        document, *found = score_rows(lot, windows, row, partial(_score_row, model), kinds, model.device)
        yield TokenLosses(document, *found)


def lots(
    model: CausalModel,
    texts: pa.LargeStringArray,
    window: int,
    stride: int,
    prompts: pa.LargeStringArray | None = None,
) -> Iterator[tuple[Lot, Windows, int]]:
    """What is read of documents: lots of tokens, the windows of each, and how many tokens a row of windows has.

    Arguments are those of `token_losses`. Raises ValueError: a stride outside 1..window - 1.
    """
    if not 1 <= stride < window:
        raise ValueError(f"stride {stride} with a window of {window} tokens; give at least 1 and less than the window")
    row = max(ROW if model.device.type == "cpu" else ROW_GPU, -(-window // 64) * 64)
    held, begun = Lot.nothing(), False
    for fresh in _tokenised(model, texts, prompts):
        held = held.joined(fresh)
        if len(held) >= LOT:
            windows, rest, next_begun = plan_windows(held, window, stride, begun, ended=False)
            yield held, windows, row
            held, begun = held.after(rest), next_begun
    windows, _, _ = plan_windows(held, window, stride, begun, ended=True)
    yield held, windows, row


def document_sums(documents: int, losses: Iterable[TokenLosses]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scored tokens (int64), summed losses and summed entropies (float64, nats) of each document.

    Sums run token by token, so they do not depend on where one of `losses` ends.
    """
    count = np.zeros(documents, np.int64)
    loss, entropy = np.zeros(documents), np.zeros(documents)
    for part in losses:
        np.add.at(count, part.document, 1)
        np.add.at(loss, part.document, part.loss)
        np.add.at(entropy, part.document, part.entropy)
    return count, loss, entropy


def plan_windows(lot: Lot, window: int, stride: int, begun: bool, ended: bool) -> tuple[Windows, int, bool]:
    """The windows of a lot.

    Args:
        begun: the first document had its first window in an earlier lot, and this one starts with its next window.
        ended: the last document ends here; else only the windows that are full are read yet.

    Returns:
        The windows in which some token is wanted, the place from which the next lot must have the tokens, and whether
        its first document will have begun.
    """
    if not len(lot):
        return Windows(*(np.zeros(0, np.int64) for _ in range(3))), 0, False
    first = np.flatnonzero(np.diff(lot.document, prepend=-1))
    inputs = np.diff(first, append=len(lot)) - 1
    fresh = np.ones(len(first), bool)
    fresh[0] = not begun
    full = np.where(inputs >= window, (inputs - window) // stride + 1, 0)
    covered = np.where(full > 0, (full - 1) * stride + window, np.where(fresh, 0, window - stride))
    count = full + (inputs > covered)
    if not ended:
        count[-1] = full[-1]
    part = np.repeat(np.arange(len(first)), count)
    number = np.arange(len(part)) - np.repeat(np.cumsum(count) - count, count)
    start = first[part] + number * stride
    length = np.minimum(window, inputs[part] - number * stride)
    context = np.where(fresh[part] & (number == 0), 0, window - stride)
    before = np.concatenate([[0], np.cumsum(lot.wanted)])
    some = before[start + length + 1] > before[start + context + 1]
    rest = len(lot) if ended else int(first[-1] + full[-1] * stride)
    return Windows(start[some], length[some], context[some]), rest, bool(full[-1] > 0 or not fresh[-1])


def _tokenised(model: CausalModel, texts: pa.LargeStringArray, prompts: pa.LargeStringArray | None) -> Iterator[Lot]:
    """The documents' tokens, each document's begun by the model's begin-of-text token."""
    begin = [] if model.begin is None else [model.begin]
    previous = -1
    for numbers, pieces in groups(texts if prompts is None else _alternating(prompts, texts)):
        encoded = model.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        tokens, document, wanted = [], [], []
        for number, encoding in zip(numbers, encoded, strict=True):
            place, scored = (number, True) if prompts is None else (number // 2, number % 2 == 1)
            ids = [*begin, *encoding.ids] if place != previous else encoding.ids
            tokens.append(np.array(ids, np.int64))
            document.append(place)
            wanted.append(scored)
            previous = place
        counts = np.fromiter(map(len, tokens), np.int64, len(tokens))
        yield Lot(np.concatenate(tokens), np.repeat(document, counts), np.repeat(wanted, counts))


def _alternating(first: pa.LargeStringArray, second: pa.LargeStringArray) -> pa.LargeStringArray:
    order = np.arange(2 * len(first)).reshape(2, -1).T.ravel()
    return pa.concat_arrays([first, second]).take(pa.array(order))


def score_rows(
    lot: Lot,
    windows: Windows,
    row: int,
    read: Callable[[Lot, Windows, int], tuple[np.ndarray, ...]],
    kinds: Sequence[type],
    device: torch.device,
) -> tuple[np.ndarray, ...]:
    """Documents (int64) of the wanted tokens that the windows predict, and their values of the `kinds` asked for.

    `read` is given the lot, the windows of one row and its length; it gives the places in the lot of the tokens that
    these score, and their values. On a CPU one thread takes a row.

    Raises:
        ValueError: a value is no number: weights are broken or overflow.
    """
    values: list[np.ndarray] = [np.zeros(len(lot), kind) for kind in kinds]
    done = np.zeros(len(lot), bool)
    rows = pack(windows.length, row)

    def fill(r: int) -> None:
        chosen = rows.order[rows.offsets[r] : rows.offsets[r + 1]]
        some = Windows(*(x[chosen] for x in (windows.start, windows.length, windows.context)))
        at, *found = read(lot, some, row)
        for value, own in zip(values, found, strict=True):
            value[at] = own
        done[at] = True

    threads = torch.get_num_threads()
    if device.type == "cpu":
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(fill, range(len(rows))))
        torch.set_num_threads(threads)  # for threads that start later, which follow the last call
    else:
        for r in range(len(rows)):
            fill(r)
    if np.isnan(values[0]).any():
        raise ValueError("the model gives losses that are no numbers; its weights are broken or overflow")
    return lot.document[done], *(value[done] for value in values)


@torch.inference_mode()
def _score_row(model: CausalModel, lot: Lot, windows: Windows, row: int) -> tuple[np.ndarray, ...]:
    """Places in the lot of the tokens that the windows score, losses, entropies and ranks."""
    targets, hidden = target_states(model, lot, windows, row)
    return targets, *head_losses(model, hidden, torch.from_numpy(lot.tokens[targets]))


def target_states(model: CausalModel, lot: Lot, windows: Windows, row: int) -> tuple[np.ndarray, torch.Tensor]:
    """Places in the lot of the tokens that the windows score, and the hidden states [tokens, width] that predict them.

    The row is filled up.
    """
    lengths = windows.length
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.repeat(windows.start, lengths) + within
    scored = np.flatnonzero(lot.wanted[place + 1] & (within >= np.repeat(windows.context, lengths)))
    tokens = np.zeros(row, np.int64)
    tokens[: len(place)] = lot.tokens[place]
    filling = split_lengths(np.array([row - len(place)]), int(lengths.max())).length  # no longer than what is read
    hidden = model.hidden(torch.from_numpy(tokens), [*lengths.tolist(), *filling.tolist()])
    return place[scored] + 1, hidden[torch.from_numpy(scored).to(hidden.device)]


def chunk_size(model: CausalModel) -> int:
    """Tokens whose logits are held at a time."""
    vocabulary = model.model.get_output_embeddings().weight.shape[0]
    return 1 << max(6, (CHUNK_NUMBERS // vocabulary).bit_length() - 1)


def head_losses(
    model: CausalModel, hidden: torch.Tensor, targets: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[tokens] each: losses of the targets (int64 [tokens]) and entropies, both float32, and the targets' ranks, int32,
    from hidden states [tokens, width].

    Chunks have one size for a model, the last is filled up, so that products keep their shape.
    """
    size = chunk_size(model)
    loss, entropy, rank = (np.zeros(len(targets), kind) for kind in (np.float32, np.float32, np.int32))
    for a in range(0, len(targets), size):
        part = slice(a, a + size)
        h, t = hidden[part], targets[part, None].to(hidden.device)
        logits = model.logits(pad(h, (0, 0, 0, size - len(h))))[: len(h)]
        logits -= logits.amax(dim=1, keepdim=True)
        own = logits.gather(1, t)[:, 0]
        rank[part] = (logits > own[:, None]).sum(dim=1, dtype=torch.int32).cpu()
        p = torch.softmax(logits, dim=1)
        normaliser = -p.amax(dim=1).log()  # the largest logit is 0
        loss[part] = (normaliser - own).cpu()
        entropy[part] = (normaliser - (p * logits.clamp_min_(-1e30)).sum(dim=1)).cpu()  # 0 · -inf shall be 0
    return loss, entropy, rank
