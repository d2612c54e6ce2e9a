"""Laws of cost: what a call computes and keeps is bounded by its window, however long the history is."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.bridges import EngineSpec, shared_engine, shared_engines
from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.config import AdapterConfig
from deltamem_agents.inference.reply_text import StoppingText
from deltamem_agents.snapshots import InMemoryStore
from deltamem_agents.testing import SELECTIVE, ScriptedEngine
from deltamem_agents.types import Message, Sampling, ToolCall
from tiny_engine import byte_tokenizer, tiny_engine

SHORT = Sampling(max_tokens=4)


def talk(count: int) -> list[Message]:
    return [Message("assistant" if n % 2 else "user", f"Message {n:05} of a long talk.") for n in range(count)]


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of messages of each rendering."""
    counts: list[int] = []
    render = ChatTemplate.render

    def counting(template: ChatTemplate, messages: Sequence[Message], **options: object) -> object:
        counts.append(len(messages))
        return render(template, messages, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ChatTemplate, "render", counting)
    return counts


def test_fitting_a_window_costs_the_same_for_every_length_of_history(rendered: list[int]) -> None:
    prompts = tiny_engine(window_tokens=400)._prompts
    costs = []
    for length in (40, 400, 12_800):
        rendered.clear()
        window = prompts.window(talk(length), (), 40, ())
        costs.append((sum(rendered), length - window.start))
    assert len(set(costs)) == 1 and costs[0][1] > 4
    assert costs[0][0] < 12 * costs[0][1]


@pytest.mark.slow
def test_the_cost_per_message_of_splitting_a_history_does_not_grow(rendered: list[int]) -> None:
    prompts = tiny_engine(window_tokens=400)._prompts
    costs = []
    for length in (100, 800):
        rendered.clear()
        assert sum(prompt.messages for prompt in prompts.segments(talk(length), None)) == length
        costs.append(sum(rendered) / length)
    assert costs[1] < 1.1 * costs[0] and costs[0] < 12


@settings(max_examples=50)
@given(text=st.text("ab\nU", max_size=60), stop=st.text("ab\nU", min_size=1, max_size=8), call=st.booleans())
def test_at_most_as_many_states_are_kept_as_the_stop_string_has_characters(text: str, stop: str, call: bool) -> None:
    tokenizer = byte_tokenizer()
    watching = StoppingText(tokenizer, (stop,), "U" if call else None, (None, 0))
    for fed, token in enumerate(tokenizer(text, add_special_tokens=False)["input_ids"], 1):
        watching.push(token)
        if watching.stopped:
            break
        watching.passed((None, fed))
        assert watching.kept <= len(stop)
    # One token is one character here, so the number of remembered tokens is the length of the remaining text.
    assert watching.remembered[1] == len(watching.text) == (text.index(stop) if watching.stopped else len(text))


def test_text_without_the_start_of_a_stop_string_keeps_one_state() -> None:
    watching = StoppingText(byte_tokenizer(), ("\nUser:",), None, (None, 0))
    for number, token in enumerate(byte_tokenizer()("A long reply. " * 20, add_special_tokens=False)["input_ids"]):
        watching.push(token)
        watching.passed((None, number + 1))
        assert watching.kept == 1


def holders(secret: str) -> list[object]:
    """Everything in this process that holds the text, as text or as the tiny tokenizer's tokens."""
    tokens = byte_tokenizer()(secret, add_special_tokens=False)["input_ids"]
    gc.collect()
    tracked = [one for one in gc.get_objects() if type(one) is not FrameType and one is not tokens]
    found: list[object] = [one for one in tracked if type(one) in (list, tuple) and _spells(one, tokens)]
    seen = {id(one) for one in (*tracked, tokens, tracked, found)}
    # The garbage collector does not track containers of only texts and numbers, but a tracked object refers to them.
    waiting: list[object] = tracked
    while waiting:
        held = {id(one): one for one in gc.get_referents(*waiting) if type(one) in (str, tuple, dict, list)}
        waiting = [one for key, one in held.items() if key not in seen and type(one) is not str]
        found += [one for one in held.values() if type(one) is str and secret in one and one is not secret]
        found += [one for one in waiting if type(one) in (list, tuple) and _spells(one, tokens)]
        seen.update(held)
    return found


def _spells(values: Sequence[object], tokens: list[int]) -> bool:
    if len(values) < len(tokens) or type(values[0]) is not int:
        return False
    return any(list(values[at : at + len(tokens)]) == tokens for at in range(len(values) - len(tokens) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, SELECTIVE], ids=["one state", "statements"])
def test_no_text_of_an_agent_stays_in_the_process_once_it_is_forgotten(config: AdapterConfig | None) -> None:
    secret = "".join(chr(ord("a") + n * 7 % 26) for n in range(20))
    engine = tiny_engine(InMemoryStore(), config=config, window_tokens=300)

    def live() -> None:
        said = [Message("user", f"My word is {secret}, number {n}.") for n in range(6)]
        said.append(Message("assistant", "", (ToolCall("keep", {"word": f"x{secret}"}, "1"),)))
        said.append(Message("tool", f"{secret} is kept", tool_call_id="1", name="keep"))
        engine.run_turn("ada", said, sampling=SHORT)
        engine.absorb_into("ada", [Message("user", f"Also {secret}!")], thread="b")
        engine.score(None, [Message("user", f"And {secret}?")], secret + ".")
        engine.count_tokens([Message("user", f"So {secret}.")])

    live()
    engine.store.forget("ada")
    # Only the test's own references are found, which also shows that the search works.
    kept = [f"Still {secret}", tuple(byte_tokenizer()(f"Still {secret}")["input_ids"])]
    assert sorted(map(id, holders(secret))) == sorted(map(id, kept))


def test_opening_a_model_does_not_block_users_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, opened = threading.Event(), threading.Event(), []

    def opening(spec: EngineSpec) -> ScriptedEngine:
        opened.append(spec.model)
        if spec.model == "slow":
            begun.set()
            assert go_on.wait(60)
        return ScriptedEngine(name=spec.model)

    monkeypatch.setattr(shared_engines, "_open", opening)
    monkeypatch.setattr(shared_engines, "_opened", {})
    ready = shared_engine(EngineSpec("ready"))
    threads = [threading.Thread(target=shared_engine, args=(EngineSpec("slow"),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    assert shared_engine(EngineSpec("ready")) is ready
    assert shared_engine(EngineSpec("another")) is not ready
    go_on.set()
    for thread in threads:
        thread.join()
    assert opened == ["ready", "slow", "another"]
