"""Laws of LoCoMo: its file format and scores, on a tiny file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_runs import refusal, run_json
from deltamem_agents.errors import ConfigError
from deltamem_agents.lab.evaluation.locomo import CATEGORIES, ROWS, locomo_score, read_locomo
from deltamem_agents.lab.evaluation.long_tasks import LongQuestion
from tiny_folders import Tiny


def sample(name: str, one: str = "Mia", other: str = "Leo") -> dict[str, Any]:
    """A conversation written for this test."""
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": one,
            "speaker_b": other,
            "session_10_date_time": "4 pm on 2 June, 2021",
            "session_10": [{"speaker": other, "dia_id": "D10:1", "text": "The kiln is repaired."}],
            "session_2_date_time": "1 pm on 3 May, 2021",
            "session_2": [
                {"speaker": one, "dia_id": "D2:1", "text": "I sold a blue vase."},
                {"speaker": other, "dia_id": "D2:2", "text": "Look!", "blip_caption": "a photo of a kiln"},
            ],
        },
        "qa": [
            {"question": f"What did {one} sell?", "answer": "a vase, a bowl", "evidence": ["D2:1"], "category": 1},
            {"question": f"When did {one} sell it?", "answer": 2021, "evidence": [], "category": 2},
            {"question": "Does she like blue?", "answer": "Yes; she made a blue vase", "evidence": [], "category": 3},
            {"question": "What was repaired?", "answer": "the kiln", "evidence": ["D10:1"], "category": 4},
            {"question": f"What did {other} sell?", "evidence": [], "category": 5, "adversarial_answer": "a vase"},
        ],
    }


def written(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "locomo.json", [sample("c1"), sample("c2", "Ida", "Tom")])


def test_sessions_are_ordered_by_number_and_dated(file: Path) -> None:
    task, _ = read_locomo(file)
    assert [(line.head, line.text) for line in task.lines] == [
        ("[1 pm on 3 May, 2021]", "Mia: I sold a blue vase."),
        ("[1 pm on 3 May, 2021]", "Leo: Look! [shows a picture: a photo of a kiln]"),
        ("[4 pm on 2 June, 2021]", "Leo: The kiln is repaired."),
    ]
    assert [[(message.role, message.content) for message in session] for session in task.sessions] == [
        [
            ("user", "[1 pm on 3 May, 2021] Mia: I sold a blue vase."),
            ("user", "Leo: Look! [shows a picture: a photo of a kiln]"),
        ],
        [("user", "[4 pm on 2 June, 2021] Leo: The kiln is repaired.")],
    ]


def test_questions_have_their_category_and_gold_answer(file: Path) -> None:
    task, _ = read_locomo(file)
    assert [question.kind for question in task.questions] == list(CATEGORIES.values())
    assert [question.golds[0] for question in task.questions[:4]] == ["a vase, a bowl", "2021", "Yes", "the kiln"]
    for question in task.questions[:4]:
        assert question.query in question.text
        assert "vase, a bowl" not in question.text and "the kiln" not in question.text


def test_an_adversarial_question_offers_both_options_in_a_fixed_order(file: Path) -> None:
    asked = [task.questions[4] for task in read_locomo(file)]
    assert asked == [task.questions[4] for task in read_locomo(file)]
    for question in asked:
        for letter, option in zip("ab", question.text.split("(a) ")[1].split("\n")[0].split(" (b) "), strict=True):
            assert (option == "Not mentioned in the conversation") == (letter == question.golds[0])


@pytest.mark.parametrize(
    ("category", "gold", "reply", "expected"),
    [
        (1, "a vase, a bowl", "bowls, vases", 1.0),
        (1, "a vase, a bowl", "a vase", 0.5),
        (4, "the kiln", "the kilns.\nAnd more talk", 1.0),
        (4, "the kiln", "\nkiln", 1.0),
        (4, "the kiln", "a kiln or so", 0.5),
        (2, "7 May 2021", "May 2021", 0.8),
        (5, "b", "b", 1.0),
        (5, "b", "(b) Not mentioned", 1.0),
        (5, "b", "B.", 1.0),
        (5, "b", "a", 0.0),
        (5, "b", "(a) a vase", 0.0),
        (5, "a", "It was not mentioned.", 1.0),
        (5, "a", "No information available", 1.0),
        (5, "a", "a vase", 1.0),
        (5, "a", "blue", 0.0),
    ],
)
def test_replies_are_scored_by_their_categorys_rule(category: int, gold: str, reply: str, expected: float) -> None:
    question = LongQuestion("?", "?", (gold,), CATEGORIES[category])
    assert locomo_score(question, reply) == pytest.approx(expected)


def test_every_category_has_a_row_and_counts_in_all() -> None:
    assert all(ROWS.kinds[name] == {name} for name in CATEGORIES.values())
    assert ROWS.kinds["all"] == set(CATEGORIES.values())
    assert ROWS.kinds["all but adversarial"] == set(CATEGORIES.values()) - {"adversarial"}


def broken(change: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    """Two conversations, the second of which is broken by `change`."""
    second = copy.deepcopy(sample("c2"))
    change(second)
    return [sample("c1"), second]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conversation"), "the sample: 'conversation' is None"),
        (lambda s: s["conversation"].pop("speaker_b"), "conversation: 'speaker_b' is None"),
        (lambda s: s["conversation"].pop("session_2_date_time"), "'session_2_date_time' is None"),
        (lambda s: s["conversation"]["session_2"].append("x"), "session_2, turn 3: 'speaker' is None"),
        (lambda s: s["conversation"]["session_2"][1].update(speaker="Eve"), "session_2, turn 2: speaker is 'Eve'"),
        (lambda s: s["conversation"]["session_2"][0].update(text=None), "session_2, turn 1: 'text' is None"),
        (lambda s: s["qa"][0].pop("question"), "qa 1: 'question' is None"),
        (lambda s: s["qa"][3].pop("answer"), "qa 4: 'answer' is None"),
        (lambda s: s["qa"][3].update(category=7), "qa 4: category is 7"),
        (lambda s: s["qa"][3].update(category=True), "qa 4: 'category' is True"),
        (lambda s: s["qa"][4].pop("adversarial_answer"), "qa 5: 'adversarial_answer' is None"),
        (lambda s: s.update(qa={}), r"'qa' is \{\}"),
        (lambda s: [s["conversation"].pop(f"session_{n}") for n in (2, 10)], "there is no session_1"),
    ],
)
def test_an_invalid_field_is_named_with_its_place(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "bad.json", broken(change))
    with pytest.raises(ConfigError, match=rf"bad\.json, conversation 2, .*{message}") as refused:
        read_locomo(path)
    assert "expected LoCoMo's form" in str(refused.value)


@pytest.mark.parametrize("text", ["", "not json", "{}", "[]", '"x"'])
def test_a_file_of_another_format_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.json: .*expected LoCoMo's form"):
        read_locomo(path)


@pytest.mark.slow
def test_the_command_measures_every_category_in_every_arm(tiny: Tiny, file: Path, tmp_path: Path) -> None:
    options = [*tiny.options, "--data", file, "--prompt-tokens", "256"]
    report = run_json("eval", "locomo", *options, "--save", tmp_path / "report.json")
    assert report == json.loads((tmp_path / "report.json").read_text())
    names = [figure["name"] for figure in report["figures"]]
    assert names[:3] == [f"multi-hop · {shown}" for shown in ("recent window", "question only", "BM25 snippets")]
    assert len(names) == 3 * len(ROWS.kinds)
    assert report["settings"] == {"data": "locomo.json", "prompt_tokens": 256}
    some = run_json("eval", "locomo", *options, "--questions", "4")
    assert some["figures"][-1]["questions"] == 4
    assert "raise it" in refusal("eval", "locomo", *tiny.options, "--data", file, "--prompt-tokens", "64")
