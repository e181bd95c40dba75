"""A planner and writer for LongWriter that does what the instruction says, or fails where it says so."""

from __future__ import annotations

import re


def wish(topic: str, steps: int, words: int = 40, fault: str = "none@0") -> str:
    return f"Write a long text: topic={topic} steps={steps} words={words} fault={fault}"


def paragraph(topic: str, number: int, count: int) -> str:
    """Words of its own: two letters for the number of the paragraph, two for that of the word."""
    letters = [f"{chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(max(number + 1, count))]
    return " ".join(f"{topic}{letters[number]}{letters[k]}" for k in range(count))


def said(prompt: str) -> tuple[str, str]:
    """What the toy planner and writer answers, and why it ends. The instruction says how: `topic=cats steps=3 words=40
    fault=KIND@NUMBER`."""
    asked = dict(re.findall(r"(\w+)=([\w@]+)", prompt))
    topic, steps, words = asked["topic"], int(asked["steps"]), int(asked["words"])
    kind, _, at = asked.get("fault", "none@0").partition("@")
    if "Plan it" in prompt:
        lines = [f"{n}. Part {n} of {topic} ({words} words)" for n in range(1, steps + 1)]
        whole = "Here is the plan:\n\n" + "\n\n".join(lines)
        plans = {"noplan": "I like it.", "noplan_empty": "", "nocount": "1. a\n2. b (20 words)"}
        plans |= {
            "declines": "I'm sorry, but I cannot help with that.",
            "thinks": f"<think>1. x (9 words)</think>{whole}",
        }
        return plans.get(kind, whole), "length" if kind == "plancut" else "stop"
    number = int(re.findall(r"number (\d+) of the plan", prompt)[-1])
    if kind == "ignores":
        words *= int(at)
    if number == int(at):
        if kind == "empty":
            return " \n", "stop"
        if kind == "refuses":
            return "As an AI language model, I won't write this.", "stop"
        if kind == "repeats":
            return paragraph(topic, number - 1, words), "stop"
        if kind == "cut":
            return paragraph(topic, number, words), "length"
    return paragraph(topic, number, words) + "\n", "stop"
