"""Documents whose ratings and domain are planted in their words, for raters that are taught on the spot.

Most ratings are a word's: each criterion has one for every rating. Three are counted over four words: those without a
mistake (accuracy), those of the one language (language consistency), those not said again (originality). The domain has
a keyword. The overall score is the mean of the other ratings, which lie around a quality of the document.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from transforms.ratings import DOMAINS, RATINGS

WORDS = {  # for the ratings 1 to 5
    "coherence": "anyway however meanwhile consequently therefore",
    "semantic_density": "somehow roughly partly mostly exactly",
    "knowledge_novelty": "trite familiar recent novel unheard",
    "topic_focus": "besides incidentally relatedly namely precisely",
    "creativity": "bland usual lively vivid shimmering",
    "professionalism": "stuff gadget tool instrument apparatus",
    "style_consistency": "gonna okay well indeed whereas",
    "grammatical_diversity": "is being having although notwithstanding",
    "structural_standardization": "jumble list steps section chapter",
    "sensitivity": "damn crude blunt polite respectful",
}
COUNTED = {"accuracy": ("receive", "recieve"), "language_consistency": ("together", "zusammen")}  # good, bad
COLOURS = ["red", "blue", "green", "grey", "gold"]
KEYWORDS = [
    "nurse", "bond", "judge", "pupil", "robot", "film", "lemma", "compiler", "senate", "poem", "train", "basket",
    "antenna", "wheat", "thing",
]  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2}
# A lesson in which 300 `simple` documents and a short prompt are learned.
QUICK = {"epochs": 12, "train": {"row_length": 128, "batch_tokens": 512, "model": {**SMALL, "rope_theta": 100}}}


class Planted(NamedTuple):
    text: str
    ratings: list[int]
    domain: str


def planted(draw: np.random.Generator) -> Planted:
    """A document of 28 words in any order."""
    quality = draw.integers(1, 6)
    ratings = dict(zip(RATINGS, np.clip(quality + draw.integers(-1, 2, 13), 1, 5).tolist(), strict=False))
    place = int(draw.integers(len(DOMAINS)))
    said = 6 * [KEYWORDS[place]] + [words.split()[ratings[name] - 1] for name, words in WORDS.items()]
    said += [kinds[k >= ratings[name] - 1] for name, kinds in COUNTED.items() for k in range(4)]
    new = draw.choice(COLOURS, ratings["originality"] - 1, replace=False)
    said += [*new, *(4 - len(new)) * ["again"]]
    draw.shuffle(said)
    overall = round(float(np.mean([*ratings.values()])))
    return Planted(" ".join(said), [*ratings.values(), overall], [*DOMAINS][place])


def simple(draw: np.random.Generator) -> Planted:
    """A document of eight words that a small model learns to rate within 200,000 tokens: one word decides on all
    ratings, every other one of which is turned around, and the last one on one of three domains."""
    rating, letter = int(draw.integers(1, 6)), str(draw.choice(["A", "C", "N"]))
    said = 2 * [["awful", "poor", "plain", "good", "superb"][rating - 1]] + draw.choice(COLOURS, 4).tolist()
    draw.shuffle(said)
    said += 2 * [KEYWORDS[ord(letter) - ord("A")]]
    return Planted(" ".join(said), [6 - rating if k % 2 else rating for k in range(14)], letter)
