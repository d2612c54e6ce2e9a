"""Laws of distinguishing edits, deletions and trimming by message ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langchain_deltamem.revisions import Seen, after, digests, merged, revise

PLACES = st.sets(st.integers(0, 11))


def told(count: int = 12) -> list[BaseMessage]:
    kinds = (HumanMessage, AIMessage)
    return [kinds[place % 2](f"text {place}", id=f"m{place}") for place in range(count)]


def ids(places: set[int]) -> list[str]:
    return [f"m{place}" for place in sorted(places)]


@given(edited=PLACES, missing=PLACES)
def test_at_the_start_of_a_run_edited_and_missing_messages_are_undone(edited: set[int], missing: set[int]) -> None:
    seen = Seen(digests(told()))
    messages = [m for place, m in enumerate(told()) if place not in missing]
    for message in messages:
        if int((message.id or "")[1:]) in edited:
            message.content = "edited"
    front = next((place for place in range(12) if place not in missing), 12)
    revision = revise(seen, digests([*messages, HumanMessage("new", id="new")]), began=True)
    assert revision.edited == ids(edited - missing)
    assert revision.deleted == ids({place for place in missing if place > front})
    assert revision.standing == [m.id for m in messages] and not revision.summaries
    assert len(revision.undone(seen)) == len(revision.edited) + len(revision.deleted)


@given(missing=PLACES)
def test_during_a_run_only_the_newest_reply_is_deleted(missing: set[int]) -> None:
    seen = Seen(digests(told()))
    messages = [m for place, m in enumerate(told()) if place not in missing]
    revision = revise(seen, digests([*messages, HumanMessage("new", id="new")]))
    assert revision.deleted == (["m11"] if 11 in missing and 10 not in missing else []) and not revision.edited


@given(missing=PLACES.filter(lambda places: 11 not in places))
def test_a_message_that_replaces_trimmed_ones_is_a_summary(missing: set[int]) -> None:
    kept = [m for place, m in enumerate(told()) if place not in missing]
    first = next(place for place in range(12) if place not in missing)
    summary, new = HumanMessage("They talked.", id="s"), HumanMessage("new", id="new")
    seen = Seen(digests(told()))
    revision = revise(seen, digests([summary, *kept, new]))
    assert revision.summaries == ({"s"} if first else set()) and revision.inserted(seen) == ([] if first else ["s"])
    known = after(seen, revision, digests([summary, *kept, new]), {"r": "a:1"}, revision.summaries)
    later = revise(known, digests([summary, *kept, new, AIMessage("reply", id="r")]))
    assert later.inserted(known) == [] and later.summaries == revision.summaries


@given(trimmed=PLACES)
def test_the_messages_a_run_began_with_are_compared_although_it_trims_them(trimmed: set[int]) -> None:
    began = [HumanMessage("edited", id="m0"), *told()[1:]]
    now = [HumanMessage("They talked.", id="s"), *(m for place, m in enumerate(began) if place not in trimmed)]
    messages, inserted = merged(began, [*now, HumanMessage("new", id="new")])
    revision = revise(Seen(digests(told())), digests(messages), inserted, began=True)
    assert revision.edited == ["m0"] and not revision.deleted
    assert [m.id for m in messages[:12]] == [f"m{place}" for place in range(12)]


def test_an_undone_text_is_unwanted_until_it_is_said_again() -> None:
    first, second = HumanMessage("Oslo", id="a"), HumanMessage("Rome", id="a")
    seen = Seen(digests([first]))
    revision = revise(seen, digests([second]), began=True)
    edited = after(seen, revision, digests([second]), {}, ())
    assert [*edited.undone] == ["a " + seen.known["a"]] == [*revision.unwanted(seen, digests([second]))]
    back = revise(edited, digests([first]), began=True)
    assert back.unwanted(edited, digests([first])) == {"a " + edited.known["a"]}
    assert [*after(edited, back, digests([first]), {}, ()).undone] == ["a " + edited.known["a"]]
    assert Seen.of(edited.as_json()) == edited and Seen.of(None) is None
