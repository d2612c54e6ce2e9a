"""Laws of matching: when a reply is right, after a given beginning or as a free reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.lab.evaluation.matching import Match, contains, match, words

BOTH, FIRST, NEITHER = Match(True, True), Match(True, False), Match(False, False)


@pytest.mark.parametrize(
    ("answer", "reply", "expected"),
    [
        ("Ann", " Ann.", BOTH),
        ("Ann", "Ann", BOTH),
        ("Ann", " Ann! And you?", BOTH),
        ("Ann", ' "Ann".', BOTH),
        ("Ann", " **Ann**", BOTH),
        ("Ann", " Anna.", NEITHER),
        ("Anna", " Ann", NEITHER),
        ("Ann", " Joann.", NEITHER),
        ("Ann", " ann.", NEITHER),
        ("Ann", " Ann Arbor.", FIRST),
        ("Ann", " Ann, of course.", BOTH),
        ("Ann", " Ann (Smith)", BOTH),
        ("12 March", " 12 March 1990.", FIRST),
        ("Ann", " not Ann", NEITHER),
        ("Ann", "", NEITHER),
        ("Ann", " ...", NEITHER),
        ("New York", " New York.", BOTH),
        ("New York", " New Delhi.", FIRST),
        ("New York", " York", NEITHER),
        ("New York", " New\nYork", BOTH),
        ("New York", " New", FIRST),
        ("New York", " The New York", NEITHER),
        ("Jean-Luc", " Jean-Luc.", BOTH),
        ("Jean-Luc", " Jean Paul.", FIRST),
        ("3.5", " 3.5.", BOTH),
        ("3.5", " 3.7", NEITHER),
        ("3.5", " 3", NEITHER),
        ("3", " 3.5", NEITHER),
        ("3", " 3. Then", BOTH),
        ("3.5", " 3. 5", NEITHER),
        ("1,000", " 1,000 of them", FIRST),
        ("1", " 1,000", NEITHER),
        ("10:30", " 10:30.", BOTH),
        ("10:30", " 10:45", NEITHER),
        ("42", " 421", NEITHER),
        ("Zoë", " Zoe\u0308.", BOTH),
        ("Zoe\u0308", " Zoë", BOTH),
        ("Zoë", " Zoe", NEITHER),
        ("Łódź", " Łódź!", BOTH),
        ("हिन्दी", " हिन्दी।", BOTH),
        ("हिन्दी", " हिन्दु", NEITHER),
        ("snake_case", " snake_case", BOTH),
        ("snake_case", " snake case", NEITHER),
        ("東京", " 東京。", BOTH),
    ],
)
def test_after_a_given_beginning_the_answer_must_come_first_and_alone(answer: str, reply: str, expected: Match) -> None:
    assert match(answer, reply, begun=True) == expected


@pytest.mark.parametrize(
    ("answer", "reply", "expected"),
    [
        ("Ann", "Your name is Ann.", BOTH),
        ("Ann", "Ann, of course", BOTH),
        ("Ann", "Is it Anna, or Joann?", NEITHER),
        ("Ann", "I do not know.", NEITHER),
        ("New York", "You live in New York, I think.", BOTH),
        ("New York", "You live in New Delhi, not York.", FIRST),
        ("New York", "New? New York.", BOTH),
        ("New York", "York New", FIRST),
        ("3.5", "You said it is 3.5 metres.", BOTH),
        ("3.5", "Between 3 and 5.", NEITHER),
        ("3.5", "About 3.55.", NEITHER),
        ("5", "About 3.5 or so", NEITHER),
        ("Zoë", "Her name is ZOË or Zoe\u0308.", BOTH),
    ],
)
def test_a_free_reply_is_searched_for_the_answer(answer: str, reply: str, expected: Match) -> None:
    assert match(answer, reply, begun=False) == expected


@given(st.text(max_size=30))
def test_words_contain_no_spaces_and_occur_in_the_text(text: str) -> None:
    found = words(text)
    assert found == words(f" ({text}) ")
    assert all(word and word == "".join(word.split()) for word in found)
    assert words(" ".join(found)) == found


@given(st.lists(st.text("abcéжß09", min_size=1), max_size=5), st.sampled_from([" ", "-", "; ", "\n", " … "]))
def test_words_joined_by_punctuation_are_separated(parts: list[str], mark: str) -> None:
    assert words(mark.join(parts)) == parts


texts = st.text("ab é9.,- ", max_size=12)


@given(texts, texts, texts)
def test_a_value_between_other_words_is_contained(before: str, value: str, after: str) -> None:
    assert contains(f"{before} – {value} – {after}", value) == bool(words(value))


@given(texts, texts)
def test_a_right_answer_has_a_right_first_word_and_is_contained_in_the_reply(answer: str, reply: str) -> None:
    if words(answer):
        for begun in (True, False):
            found = match(answer, reply, begun=begun)
            assert found.first or not found.whole
            assert contains(reply, answer) or not found.whole
