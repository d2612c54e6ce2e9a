"""Laws of a user's episodes file: what it may contain, and that errors name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltamem_agents.errors import ConfigError, MessageError
from deltamem_agents.lab.corpus.episodes import Question
from deltamem_agents.lab.evaluation.episodes_file import read_episodes
from deltamem_agents.types import Message

ROW: dict[str, Any] = {
    "messages": [{"role": "user", "content": "I live in Oslo."}, {"role": "assistant", "content": "Noted."}],
    "questions": [
        {"question": "Where do I live?", "answer": "Oslo"},
        {"question": "Which city?", "answer": "Oslo", "prefix": "It is"},
    ],
}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_has_one_episode_per_line(tmp_path: Path) -> None:
    (found, again) = read_episodes(written(tmp_path / "a.jsonl", ROW, ROW))
    assert found == again
    assert found.messages == (Message("user", "I live in Oslo."), Message("assistant", "Noted."))
    assert found.questions == (
        Question("Where do I live?", "Oslo", ""),
        Question("Which city?", "Oslo", "It is"),
    )


def test_blank_lines_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", ROW)
    plain = read_episodes(path)
    text = path.read_text(encoding="utf-8").rstrip("\n")
    path.write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n\r\n   \r\n{text}".encode())
    assert read_episodes(path) == plain * 2


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_text_may_contain_any_character(tmp_path: Path, mark: str) -> None:
    row = {**ROW, "messages": [{"role": "user", "content": f"a{mark}b"}]}
    path = tmp_path / "a.jsonl"
    raw = json.dumps(row, ensure_ascii=mark < " ")
    path.write_bytes(raw.encode() + b"\n")
    (found,) = read_episodes(path)
    assert found.messages[0].content == f"a{mark}b"


def test_numeric_answers_become_text(tmp_path: Path) -> None:
    row = {**ROW, "questions": [{"question": "How many?", "answer": 42}, {"question": "How far?", "answer": 3.5}]}
    (found,) = read_episodes(written(tmp_path / "a.jsonl", row))
    assert [question.answer for question in found.questions] == ["42", "3.5"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2], r"found \[1, 2\]"),
        ({"questions": ROW["questions"]}, "'messages' is None"),
        ({**ROW, "messages": []}, r"'messages' is \[\]"),
        ({**ROW, "messages": "I live in Oslo."}, "'messages' is 'I live"),
        ({**ROW, "messages": [{"role": "robot", "content": "x"}]}, "message 0: .*robot"),
        ({**ROW, "messages": [{"role": "user", "content": ["x"]}]}, "message 0: .*expected text"),
        ({**ROW, "messages": ["x"]}, "message 0 is 'x'"),
        ({**ROW, "questions": []}, r"'questions' is \[\]"),
        ({"messages": ROW["messages"]}, "'questions' is None"),
        ({**ROW, "questions": ["Where?"]}, "question 1 is 'Where"),
        ({**ROW, "questions": [*ROW["questions"], {"question": "Where?"}]}, "question 3 has answer None"),
        ({**ROW, "questions": [{"answer": "Oslo"}]}, "question 1 has question None"),
        ({**ROW, "questions": [{"question": "Where?", "answer": ["Oslo"]}]}, "question 1 has answer .*not text"),
        ({**ROW, "questions": [{"question": "Where?", "answer": True}]}, "question 1 has answer True"),
        ({**ROW, "questions": [{"question": "Where?", "answer": "  "}]}, "no word that a reply could match"),
        ({**ROW, "questions": [{"question": "Where?", "answer": "a", "prefix": None}]}, "has prefix None"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = written(tmp_path / "a.jsonl", ROW, ROW)
    path.write_text(path.read_text(encoding="utf-8") + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(MessageError, match=rf"a\.jsonl, line 4: .*{message}") as refused:
        read_episodes(path)
    assert "expected an object" in str(refused.value)


@pytest.mark.parametrize("line", [b"{", b'{"messages": \xff}', b"not json"])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path / "a.jsonl", ROW)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(MessageError, match=r"a\.jsonl, line 2: "):
        read_episodes(path)


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_a_file_without_episodes_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no episodes"):
        read_episodes(path)
