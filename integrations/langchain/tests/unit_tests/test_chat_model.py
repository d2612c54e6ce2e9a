"""The chat model: metadata of a reply, fields and keywords, copying and serialising."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd, load
from langchain_core.messages import HumanMessage, trim_messages
from langchain_core.runnables import ConfigurableField
from scripted_chat import add, scripted, store, turns

from deltamem_agents import ConfigError, InMemoryStore, Message, Sampling, SQLiteStore, StoreError
from deltamem_agents.testing import Asked, ScriptedEngine
from langchain_deltamem import ChatDeltaMem

SAMPLED = {
    "max_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "seed": 4,
    "stop": ["three"],
}


def test_a_reply_reports_what_the_memory_did() -> None:
    model = scripted("Hello.")
    reply = model.invoke("I am Ada.", agent_id="ada")
    facts = reply.response_metadata["deltamem"]
    assert facts["agent"] == "ada" and facts["snapshot"] == store(model).head("ada")
    assert facts["tokens_written"] == len("I am Ada.") + len("Hello.") and facts["state_bytes"] == 64
    assert reply.response_metadata["model_name"] == "scripted" and reply.response_metadata["finish_reason"] == "stop"
    json.dumps(reply.response_metadata)
    ephemeral = model.invoke("I am Ada.").response_metadata["deltamem"]
    assert ephemeral["agent"] is None and ephemeral["snapshot"] is None


def test_usage_counts_what_was_read_outside_the_prompt() -> None:
    model = ChatDeltaMem(engine=ScriptedEngine("ok", window_tokens=300), max_tokens=20)
    history = [HumanMessage(f"This is fact number {n}, and some words.") for n in range(20)]
    usage = model.invoke(history, agent_id="ada").usage_metadata
    assert usage is not None
    details = usage["input_token_details"]
    absorbed = details["absorbed"]  # type: ignore[typeddict-item]
    assert absorbed > 0 and details["cache_read"] == 0 and usage["output_tokens"] == 2
    assert usage["input_tokens"] - absorbed <= 280 and usage["total_tokens"] == usage["input_tokens"] + 2


def test_every_sampling_field_reaches_the_engine_from_both_places() -> None:
    seen: list[Sampling] = []

    class Listening(ScriptedEngine):
        def stream_turn(self, *given: Any, **options: Any) -> Any:
            seen.append(options["sampling"])
            return super().stream_turn(*given, **options)

    plain = ChatDeltaMem(engine=Listening("one two three"))
    ChatDeltaMem(engine=Listening("one two three"), **SAMPLED).invoke("hi")
    plain.invoke("hi", **SAMPLED)
    plain.bind(**SAMPLED).invoke("hi")
    list(plain.stream("hi", **SAMPLED))
    asyncio.run(plain.ainvoke("hi", **SAMPLED))
    assert seen == [Sampling(**{**SAMPLED, "stop": ("three",)})] * 5  # type: ignore[arg-type]
    plain.invoke("hi")
    assert seen[-1] == Sampling()


def test_the_reply_ends_at_a_stop_string() -> None:
    model = scripted("one two three")
    assert model.invoke("hi", max_tokens=3).content == "one"
    assert scripted("one two three", max_tokens=3).invoke("hi").response_metadata["finish_reason"] == "length"
    assert scripted("one two three", stop=[" two"]).invoke("hi").content == "one"
    assert model.bind(stop=["three"]).invoke("hi").content == "one two "


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1), ("top_p", 2), ("top_k", 0), ("min_p", 2), ("repetition_penalty", 0)]
)
def test_an_invalid_value_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        scripted(**{field: value})
    with pytest.raises(ConfigError, match=field):
        scripted().invoke("hi", **{field: value})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no field 'max_new_tokens'.*'max_tokens'"):
        ChatDeltaMem(model="scripted", max_new_tokens=5)  # type: ignore[call-arg]
    model = scripted()
    with pytest.raises(ConfigError, match=r"no keyword 'temprature'.*'temperature'"):
        model.invoke("hi", temprature=1)
    with pytest.raises(ConfigError, match=r"no keyword 'logit_bias'; there are"):
        list(model.stream("hi", logit_bias={}))
    with pytest.raises(ConfigError, match="one reply"):
        model.invoke("hi", n=2)
    assert model.invoke("hi", n=1, frequency_penalty=None).content == "You said: hi"
    assert ChatDeltaMem(model="scripted", timeout=3, max_retries=2).max_tokens == 256  # type: ignore[call-arg]


def test_fields_that_contradict_an_open_engine_are_refused() -> None:
    engine = ScriptedEngine("ok")
    for wrong in ({"model": "other"}, {"window_tokens": 300}, {"adapter": "there"}, {"device": "cuda"}):
        with pytest.raises(ValueError, match="engine"):
            ChatDeltaMem(engine=engine, **wrong)  # type: ignore[arg-type]
    assert ChatDeltaMem(engine=engine).model == ChatDeltaMem(engine=engine, model="scripted").model == "scripted"


def test_models_of_one_name_share_the_engine_and_not_the_store(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'm.sqlite'}"
    first, second = ChatDeltaMem(model="scripted", store=url), ChatDeltaMem(model="scripted", store="memory:")
    first.invoke("hi", agent_id="ada")
    assert second._engine(None, "").store.agents() == []
    assert first._engine(None, "").model is second._engine(None, "").model
    with SQLiteStore(tmp_path / "m.sqlite") as opened:
        assert opened.agents() == ["ada"]


def test_copies_share_the_original_memory() -> None:
    model = ChatDeltaMem(model="scripted", store="memory:", agent_id="ada")
    configured = model.configurable_fields(max_tokens=ConfigurableField(id="length"))
    configured.invoke("I am Ada.", {"configurable": {"length": 300}})
    configured.invoke("hi", {"configurable": {"length": 301}})
    model.model_copy(update={"temperature": 0.5}).invoke("hello")
    model.bind(seed=1).invoke("bye")
    assert model._engine(None, "").store.load("ada").snapshot.counters.turns == 4


def test_pickling_keeps_the_settings_and_opens_nothing_twice(tmp_path: Path) -> None:
    model = ChatDeltaMem(model="scripted", store=f"sqlite:///{tmp_path / 'm.sqlite'}", agent_id="ada", temperature=0.5)
    model.invoke("hi")
    again = pickle.loads(pickle.dumps(model))
    assert again.asdict() == model.asdict()
    again.invoke("hello")
    assert model._engine(None, "").store.load("ada").snapshot.counters.turns == 2
    for open_already in (scripted(), ChatDeltaMem(model="scripted", store=InMemoryStore())):
        with pytest.raises(ConfigError, match="pickled"):
            pickle.dumps(open_already)


@pytest.mark.parametrize("given", ["engine", "store"])
def test_an_open_store_is_never_replaced_by_the_default_file(given: str) -> None:
    model = scripted() if given == "engine" else ChatDeltaMem(model="scripted", store=InMemoryStore())
    assert copy.deepcopy(model)._engine(None, "ada").store is model._engine(None, "ada").store
    allowed = {"allowed_objects": [ChatDeltaMem], "valid_namespaces": ["langchain_deltamem"]}
    with pytest.raises(ValueError, match="an open store cannot be; give store= or engine= again"):
        load(json.loads(json.dumps(dumpd(model))), **allowed)
    for written in (model.model_dump(), json.loads(model.model_dump_json())):
        with pytest.raises(ValueError, match="an open store cannot be; give store= or engine= again"):
            ChatDeltaMem(**written)
        again = ChatDeltaMem(**{**written, given: getattr(model, given)})
        assert again._engine(None, "ada").store is model._engine(None, "ada").store


def test_a_call_without_a_memory_needs_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DELTAMEM_HOME", str(tmp_path / "file" / "below"))
    model = ChatDeltaMem(model="scripted")
    assert model.invoke("hi").content == model.invoke("hi", agent_id="ada", memory="off").content == "You said: hi"
    assert model.get_num_tokens("hi") == 2
    with pytest.raises(StoreError, match=r"below.* store=, .*DELTAMEM_HOME"):
        model.invoke("hi", agent_id="ada")


def test_a_path_is_a_store_and_is_serialised_as_text(tmp_path: Path) -> None:
    model = ChatDeltaMem(model="scripted", store=tmp_path / "m.sqlite", agent_id="ada")
    model.invoke("hi")
    text = json.dumps(dumpd(model))
    written = load(json.loads(text), allowed_objects=[ChatDeltaMem], valid_namespaces=["langchain_deltamem"])
    copies = (written, pickle.loads(pickle.dumps(model)), ChatDeltaMem(**model.model_dump()))
    for number, again in enumerate(copies):
        again.invoke(f"hello {number}")
    assert model._engine(None, "ada").store.load("ada").snapshot.counters.turns == 4
    with pytest.raises(ValueError, match="is no path"):
        ChatDeltaMem(model="scripted", store=Path("sqlite:///m.sqlite"))


def test_it_is_serialised_and_loaded() -> None:
    model = ChatDeltaMem(model="scripted", store="memory:", agent_id="ada", temperature=0.5)
    text = json.dumps(dumpd(model))
    again = load(json.loads(text), allowed_objects=[ChatDeltaMem], valid_namespaces=["langchain_deltamem"])
    assert again.asdict() == model.asdict() and again.invoke("hi").content == "You said: hi"
    assert not {"engine", "serving"} & dumpd(scripted())["kwargs"].keys()


def test_the_profile_is_true() -> None:
    profile = scripted().profile
    assert profile is not None and profile["name"] == "scripted"
    assert profile["tool_calling"] is True and profile["image_inputs"] is False
    assert profile["max_input_tokens"] == 16_384 - 500 and profile["max_output_tokens"] == 500
    by_name = ChatDeltaMem(model="scripted", window_tokens=300, max_tokens=100).profile
    assert by_name is not None and by_name["max_input_tokens"] == 200


def test_langsmith_gets_the_call_parameters() -> None:
    model = scripted(temperature=0.5)
    params = model._get_ls_params(stop=["x"])
    assert (params["ls_provider"], params["ls_model_name"], params["ls_stop"]) == ("deltamem", "scripted", ["x"])
    assert params["ls_temperature"] == 0.5 and params["ls_max_tokens"] == 500
    called = model._get_ls_params(model="scripted-b", temperature=0.1, max_tokens=3)
    assert (called["ls_model_name"], called["ls_temperature"], called["ls_max_tokens"]) == ("scripted-b", 0.1, 3)


def test_tokens_are_the_models_own() -> None:
    model = scripted()
    assert model.get_token_ids("four") == model._engine(None, "").tokenizer.encode("four")
    assert model.get_num_tokens("four") == 4 and model.get_num_tokens("") == 0
    history = [HumanMessage("a" * 20), HumanMessage("b" * 20)]
    assert trim_messages(history, max_tokens=40, token_counter=model) == history[1:]


def test_a_script_sees_the_tools_as_the_model_does() -> None:
    seen: list[Asked] = []

    def script(asked: Asked) -> str:
        seen.append(asked)
        return "ok"

    scripted(script).bind_tools([add]).invoke("hi")
    assert seen[0].tools[0].name == "add" and seen[0].tools[0].parameters["required"] == ["x"]


def test_one_agent_called_at_once_loses_no_turn() -> None:
    model = scripted(Message("assistant", "ok"), agent_id="ada")
    model.batch([f"Message {n}." for n in range(6)], {"max_concurrency": 6})
    assert turns(model, "ada") == 6
