"""The commands on single statements: what they print and change, and that listing loads no model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_runs import refusal, run, run_json
from deltamem_agents import DeltaMemEngine, SQLiteStore, WritePolicy
from deltamem_agents.cli.screen import marked
from deltamem_agents.testing import SELECTIVE
from tiny_folders import Tiny, save_tiny

TOLD = ("My name is Ada.", "I live in Oslo.", "Ada likes tea.")


@pytest.fixture(scope="module")
def selective(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return save_tiny(tmp_path_factory.mktemp("selective"), SELECTIVE)


@pytest.fixture(scope="module")
def filled(selective: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which ada was told three things. One was told in another thread and later corrected."""
    path = tmp_path_factory.mktemp("filled") / "memory.sqlite"
    with DeltaMemEngine.from_pretrained(selective.model, adapter=selective.adapter, store=path, progress=False) as made:
        for number, text in enumerate(TOLD):
            made.absorb_into("ada", [{"role": "user", "content": text}], thread="work" if number == 1 else None)
        made.correct_statement("ada", made.statements("ada")[1].id, "I live in Bergen.")
    return path


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> str:
    path = tmp_path / "memory.sqlite"
    with SQLiteStore(filled) as source, SQLiteStore(path) as copy:
        source.export("ada", tmp_path / "ada")
        copy.import_(tmp_path / "ada")
    return str(path)


def listed(store: str, *options: str, agent: str = "ada") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run_json("memory", "statements", agent, "--store", store, *options)["statements"]
    return rows


def texts(store: str, *options: str, agent: str = "ada") -> list[str]:
    return [each["text"] for each in listed(store, *options, agent=agent)]


class TestStatements:
    def test_statements_are_listed_with_strongly_written_words_marked(self, store: str) -> None:
        rows = listed(store)
        assert [each["text"] for each in rows] == [TOLD[0], TOLD[2], "I live in Bergen."]
        assert [each["thread"] for each in rows] == ["", "", "work"]
        for row in rows:
            assert "".join(piece for piece, _ in row["marked"]) == row["text"]
            assert any(strength > 0 for _, strength in row["marked"])
        shown = run("memory", "statements", "ada", "--store", store).stdout
        assert rows[0]["id"][:12] in shown and "user" in shown and "«" in shown
        assert shown.replace("«", "").replace("»", "").count("I live in Bergen.") == 1

    def test_superseded_statements_are_marked(self, store: str) -> None:
        rows = listed(store, "--superseded")
        assert [each["text"] for each in rows if each["superseded"]] == [TOLD[1]]
        shown = run("memory", "statements", "ada", "--store", store, "--superseded").stdout
        assert shown.count("superseded: ") == 1

    def test_an_older_snapshot_lists_its_own_statements(self, store: str) -> None:
        log = run_json("memory", "log", "ada", "--store", store)["snapshots"]
        assert texts(store, "--at", log[-1]["id"]) == [TOLD[0]]

    @pytest.mark.slow
    def test_neither_listing_nor_forgetting_loads_a_model(self, store: str) -> None:
        named = listed(store)[0]["id"]
        script = f"""
import sys
from typer.testing import CliRunner
from deltamem_agents.cli import app
for verb in (["statements", "ada"], ["forget-statement", "ada", {named!r}, "--yes"], ["migrate", "ada", "--dry-run"]):
    assert CliRunner().invoke(app, ["memory", *verb, "--store", {store!r}]).exit_code == 0, verb
print(sorted({{"transformers", "deltamem_agents.engine"}} & set(sys.modules)))
"""
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert said.stdout.split() == ["[]"]

    def test_an_unknown_agent_is_refused_and_no_store_is_created(self, store: str, tmp_path: Path) -> None:
        assert "bob" in refusal("memory", "statements", "bob", "--store", store)
        for verb in (["statements", "ada"], ["search", "ada", "x"], ["correct", "ada", "abcdef", "x"]):
            assert "there is no store" in refusal("memory", *verb, "--store", tmp_path / "typo.sqlite")
        assert not (tmp_path / "typo.sqlite").exists()

    def test_the_number_of_statements_over_the_bound_is_shown(self, selective: Tiny, tmp_path: Path) -> None:
        path = tmp_path / "small.sqlite"
        options: dict[str, Any] = {"adapter": selective.adapter, "store": path, "progress": False}
        with DeltaMemEngine.from_pretrained(selective.model, policy=WritePolicy(statements=2), **options) as made:
            made.absorb_into("ada", [{"role": "user", "content": text} for text in TOLD])
        found = run_json("memory", "statements", "ada", "--store", str(path))
        assert found["went"] == 1 and len(found["statements"]) == 2
        assert "1 statement went over the bound" in run("memory", "statements", "ada", "--store", str(path)).stdout


class TestChanging:
    def test_a_forgotten_statement_leaves_no_byte_and_similar_ones_are_listed(self, store: str) -> None:
        name = next(each for each in listed(store) if each["text"] == TOLD[0])
        receipt = run_json("memory", "forget-statement", "ada", name["id"][:8], "--yes", "--store", store)
        assert receipt["removed"] == [name["id"]] and receipt["kept"] == [] and receipt["nbytes"] > 0
        assert {each["text"] for each in receipt["alike"]} <= {TOLD[2], "I live in Bergen."}
        assert texts(store) == [TOLD[2], "I live in Bergen."]
        assert b"My name is" not in Path(store).read_bytes()
        assert "no such statement" in refusal(
            "memory", "forget-statement", "ada", name["id"], "--yes", "--store", store
        )

    def test_forgetting_asks_first(self, store: str) -> None:
        named = listed(store)[0]["id"]
        asked = run("memory", "forget-statement", "ada", named, "--store", store, stdin="n\n")
        assert asked.exit_code == 1 and TOLD[0] in asked.stderr
        assert texts(store) == [TOLD[0], TOLD[2], "I live in Bergen."]
        said = run("memory", "forget-statement", "ada", named, "--store", store, stdin="y\n")
        assert "removed  1 statement" in said.stdout

    def test_a_corrected_statement_has_the_new_text(self, store: str, selective: Tiny) -> None:
        named = listed(store)[0]["id"]
        made = run_json("memory", "correct", "ada", named, "My name is Eve.", "--store", store, *selective.options)[
            "statement"
        ]
        assert made["text"] == "My name is Eve." and made["supersedes"] == named
        assert texts(store) == [TOLD[2], "I live in Bergen.", "My name is Eve."]
        assert texts(store, "--superseded").count(TOLD[0]) == 1

    def test_a_search_ranks_as_the_engine_does(self, store: str, selective: Tiny) -> None:
        found = run_json("memory", "search", "ada", "Who likes tea?", "-n", "2", "--store", store, *selective.options)
        with DeltaMemEngine.from_pretrained(
            selective.model, adapter=selective.adapter, store=store, progress=False
        ) as engine:
            expected = engine.search_statements("ada", "Who likes tea?", limit=2)
        assert [(each["id"], each["score"]) for each in found["statements"]] == [
            (each.id, pytest.approx(score)) for each, score in expected
        ]


class TestMigrate:
    def test_a_dry_run_shows_what_would_move_and_changes_nothing(self, store: str) -> None:
        before = run_json("memory", "list", "--store", store)
        report = run_json("memory", "migrate", "ada", "--dry-run", "--as", "eve", "--store", store)
        assert (report["statements"], report["without_text"], report["whole_state"]) == (3, [], False)
        assert report["snapshot"] is None and report["written"] is None
        assert run_json("memory", "list", "--store", store) == before

    @pytest.mark.slow
    def test_a_migrated_memory_is_a_copy(self, store: str, tiny: Tiny, tmp_path: Path) -> None:
        there = str(tmp_path / "there.sqlite")
        to = ["--to-model", str(tiny.model), "--to-adapter", str(tiny.adapter), "--to-store", there]
        before = listed(store)
        report = run_json("memory", "migrate", "ada", *to, "--store", store)
        assert (report["agent"], report["statements"]) == ("ada", 3)
        assert [each["text"] for each in listed(there)] == [each["text"] for each in before]
        assert [each["created"] for each in listed(there)] == [each["created"] for each in before]
        assert listed(store) == before
        assert "already" in refusal("memory", "migrate", "ada", *to, "--store", store)


class TestWhy:
    @pytest.mark.slow
    def test_why_shows_the_statements_and_the_words_that_memory_changed(self, store: str, selective: Tiny) -> None:
        asked = ["chat", "--agent", "ada", "--store", store, "--max-tokens", "4", "--once", "Who likes tea?"]
        asked += [*selective.options, "--memory", "readonly"]
        plain, answer = run_json(*asked), run_json(*asked, "--why")
        assert answer["text"] == plain["text"] and "why" not in plain
        assert "".join(each["text"] for each in answer["why"]) == answer["text"]
        assert answer["facts"]["recalled"] == plain["facts"]["recalled"] != []
        result = run(*asked, "--why")
        assert f"rests on {answer['facts']['recalled'][0]['text']}" in result.stderr
        assert "changed by the memory: " in result.stderr

    def test_an_explained_turn_is_remembered_like_any_other(self, store: str, selective: Tiny) -> None:
        asked = ["chat", "--agent", "ada", "--store", store, "--max-tokens", "4", *selective.options, "--why"]
        said = run(*asked, stdin="I like blue.\n/quit\n")
        assert said.exit_code == 0 and "rests on" in said.stdout
        assert "I like blue." in texts(store)


@pytest.mark.parametrize("verb", ["list", "log ada", "show ada", "diff ada first", "export ada OUT"])
def test_commands_on_states_work_with_states_made_of_statements(verb: str, store: str, tmp_path: Path) -> None:
    with SQLiteStore(store) as opened:
        opened.tag("ada", "first", opened.moves("ada")[-1].snapshot)
        norm = opened.load("ada").snapshot.state.norm()
    words = [str(tmp_path / "out") if word == "OUT" else word for word in verb.split()]
    assert run("memory", *words, "--store", store).exit_code == 0
    run_json("memory", *words, "--store", store)
    assert run_json("memory", "log", "ada", "--store", store)["snapshots"][0]["norm"] == pytest.approx(norm)


@given(st.lists(st.tuples(st.sampled_from([" Ada", "is", " ", "here."]), st.booleans())))
def test_marks_surround_words_and_change_nothing_else(pieces: list[tuple[str, bool]]) -> None:
    shown = marked(pieces).plain
    assert shown.replace("«", "").replace("»", "") == "".join(piece for piece, _ in pieces)
    assert shown.count("«") == shown.count("»") and "« " not in shown
