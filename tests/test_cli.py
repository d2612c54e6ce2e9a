"""The command line: what each command prints, that --json prints only JSON, and the exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_runs import refusal, run, run_json
from deltamem_agents import __version__
from deltamem_agents.cli import checks
from deltamem_agents.cli.options import DEFAULT_MODEL
from deltamem_agents.cli.screen import bar, printable
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.loading import EMBEDDED_MODEL
from deltamem_agents.snapshots import FileStore, SQLiteStore
from deltamem_agents.testing.conformance import grow

COMMANDS = (
    "",
    "chat",
    "train",
    "doctor",
    "eval",
    "eval recall",
    "adapter",
    "adapter convert",
    "adapter show",
    "memory",
    *(f"memory {verb}" for verb in ("list", "log", "show", "diff", "fork", "rewind", "tag", "forget", "prune")),
    "memory export",
    "memory import",
    *(f"memory {verb}" for verb in ("statements", "search", "forget-statement", "correct", "migrate")),
)


class TestEverywhere:
    @pytest.mark.slow
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_help_with_an_example(self, command: str) -> None:
        result = run(*command.split(), "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
        assert "Example" in result.stdout or command in ("", "eval", "adapter", "memory", "doctor")

    def test_the_version_is_the_packages(self) -> None:
        assert run("--version").stdout.strip() == f"deltamem-agents {__version__}"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "wrong",
        [
            "frob",
            "memory frob",
            "memory show",
            "chat",
            "chat --agent a --memory sometimes",
            "chat --agent a --json",
            "train",
            "train --out there",
            "eval recall --facts 0",
            "eval recall --distractors 3 1",
            "eval recall --episodes /nowhere.jsonl",
            "memory tag a --delete",
            "memory prune a --keep-last 0",
        ],
    )
    def test_wrong_usage_is_exit_code_2_and_nothing_on_stdout(self, wrong: str) -> None:
        result = run(*wrong.split())
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr

    @pytest.mark.slow
    def test_help_imports_nothing_heavy_and_memory_commands_load_no_model(self, tmp_path: Path) -> None:
        store = tmp_path / "m.sqlite"
        with SQLiteStore(store) as made:
            grow(made, "ada", 2)
        script = f"""
import sys
from typer.testing import CliRunner
from deltamem_agents.cli import app
heavy = {{"torch", "transformers", "numpy", "matplotlib", "huggingface_hub"}}
assert CliRunner().invoke(app, ["memory", "log", "--help"]).exit_code == 0
print(sorted(heavy & set(sys.modules)))
assert CliRunner().invoke(app, ["memory", "show", "ada", "--store", {str(store)!r}]).exit_code == 0
print(sorted({{"transformers", "deltamem_agents.engine"}} & set(sys.modules)))
"""
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert said.stdout.split() == ["[]", "[]"]

    def test_the_default_model_is_the_embedded_one(self) -> None:
        assert DEFAULT_MODEL == EMBEDDED_MODEL

    @given(st.text())
    def test_printed_text_cannot_control_the_terminal(self, text: str) -> None:
        shown = printable(text)
        assert shown.isprintable()
        assert printable(shown) == shown

    @given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 60))
    def test_a_bars_length_is_proportional_to_its_value(self, a: float, b: float, columns: int) -> None:
        value, most = sorted((a, b))
        drawn = bar(value, most, columns)
        assert len(drawn) <= columns
        assert bar(most, most, columns) == ("█" * columns if most else "")
        assert abs(len(drawn) - columns * value / most) < 1.01 if most else drawn == ""


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with three turns of ada, a tag, and an agent with an awkward name."""
    path = tmp_path / "m.sqlite"
    with SQLiteStore(path) as made:
        grow(made, "ada", 3)
        grow(made, "\x1b[31m[red]bob\n", 1, seed=9, thread="work")
        made.tag("ada", "first", made.moves("ada")[-1].snapshot)
    return str(path)


def ids(store: str, agent: str = "ada") -> list[str]:
    """The snapshots of an agent's log, newest first."""
    return [each["id"] for each in run_json("memory", "log", agent, "--store", store)["snapshots"]]


class TestMemory:
    def test_list_shows_every_agent_with_its_counters(self, store: str) -> None:
        listed = run_json("memory", "list", "--store", store)
        assert listed["store"] == store
        by_name = {row["agent"]: row for row in listed["agents"]}
        assert set(by_name) == {"ada", "\x1b[31m[red]bob\n"}
        ada = by_name["ada"]
        assert (ada["turns"], ada["messages"], ada["tokens"], ada["snapshots"], ada["tags"]) == (3, 6, 90, 3, 1)
        assert ada["head"] == ids(store)[0]

    def test_an_agents_name_is_neither_markup_nor_an_escape(self, store: str) -> None:
        shown = run("memory", "list", "--store", store).stdout
        assert "\x1b" not in shown
        assert r"\x1b[31m[red]bob\n" in shown

    def test_a_missing_store_is_not_created(self, tmp_path: Path) -> None:
        path = tmp_path / "typo.sqlite"
        assert run_json("memory", "list", "--store", path)["agents"] == []
        assert "no agents" in run("memory", "list", "--store", path).stdout
        assert "typo.sqlite" in refusal("memory", "show", "ada", "--store", path)
        assert not list(tmp_path.iterdir())

    def test_the_default_store_is_used_without_the_option(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DELTAMEM_HOME", str(tmp_path))
        with SQLiteStore(tmp_path / "memory.sqlite") as made:
            grow(made, "at home", 1)
        assert [row["agent"] for row in run_json("memory", "list")["agents"]] == ["at home"]

    def test_a_folder_store_is_read_by_its_url(self, tmp_path: Path) -> None:
        with FileStore(tmp_path / "folder") as made:
            grow(made, "ada", 2)
        assert len(ids(f"folder:///{tmp_path}/folder")) == 2
        assert "sqlite:///PATH" in refusal("memory", "list", "--store", "redis://x")

    def test_log_follows_the_parents_and_stops_at_the_limit(self, store: str) -> None:
        rows = run_json("memory", "log", "ada", "--store", store)["snapshots"]
        assert [row["parent"] for row in rows] == [rows[1]["id"], rows[2]["id"], None]
        assert [row["tags"] for row in rows] == [[], [], ["first"]]
        assert len(run_json("memory", "log", "ada", "-n", "2", "--store", store)["snapshots"]) == 2
        assert ids(store)[0][:12] in run("memory", "log", "ada", "--store", store).stdout

    def test_show_prints_size_counters_and_layers(self, store: str) -> None:
        shown = run_json("memory", "show", "ada", "--at", "first", "--store", store)
        assert shown["geometry"] == {"layers": 3, "heads": 1, "rank": 4}
        assert shown["state_bytes"] == 3 * 4 * 4 * 4
        assert sum(norm**2 for norm in shown["layer_norms"]) == pytest.approx(shown["norm"] ** 2)
        assert (shown["parent"], shown["turns"], shown["tags"]) == (None, 1, ["first"])
        text = run("memory", "show", "ada", "--store", store).stdout
        assert ids(store)[0] in text
        assert "192 bytes" in text
        assert "█" in text

    @pytest.mark.slow
    def test_show_draws_a_picture_and_names_it(self, store: str, tmp_path: Path) -> None:
        picture = tmp_path / "ada.png"
        assert str(picture) in run("memory", "show", "ada", "--picture", picture, "--store", store).stdout
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "no/folder" in refusal("memory", "show", "ada", "--picture", "/no/folder/a.png", "--store", store)

    def test_diff_compares_two_snapshots(self, store: str) -> None:
        newest, middle, oldest = ids(store)
        change = run_json("memory", "diff", "ada", oldest[:8], "--store", store)
        assert (change["a"], change["b"]) == (oldest, newest)
        assert change["counters"] == {"turns": 2, "messages": 4, "tokens": 60}
        assert len(change["distance"]) == len(change["cosine"]) == 3
        same = run_json("memory", "diff", "ada", middle, middle, "--store", store)
        assert same["distance"] == [0.0, 0.0, 0.0]
        assert "+2 turns" in run("memory", "diff", "ada", "first", "--store", store).stdout

    def test_a_fork_leaves_its_source_alone(self, store: str) -> None:
        before = ids(store)
        forked = run_json("memory", "fork", "ada", "eve", "--at", "first", "--store", store)
        assert forked == {"source": "ada", "agent": "eve", "head": before[2]}
        assert ids(store, "eve") == before[2:]
        assert ids(store) == before
        assert "eve" in refusal("memory", "fork", "ada", "eve", "--store", store)

    def test_a_rewind_can_be_undone(self, store: str) -> None:
        newest, _, oldest = ids(store)
        there = run("memory", "rewind", "ada", "first", "--store", store).stdout
        assert ids(store) == [oldest]
        undo = re.search(r"rewind to (\w+)", there)
        assert undo is not None
        back = run_json("memory", "rewind", "ada", undo[1], "--store", store)
        assert back == {"agent": "ada", "head": newest, "before": oldest}
        verbs = [move["verb"] for move in run_json("memory", "log", "ada", "--moves", "--store", store)["moves"]]
        assert verbs == ["rewind", "rewind", "turn", "turn", "turn"]

    @pytest.mark.slow
    def test_tags_are_added_listed_and_removed(self, store: str) -> None:
        newest, _, oldest = ids(store)
        tags = run_json("memory", "tag", "ada", "now", "--store", store)["tags"]
        assert tags == {"first": oldest, "now": newest}
        assert "now" in run("memory", "tag", "ada", "--store", store).stdout
        assert run_json("memory", "tag", "ada", "now", "-d", "--store", store)["tags"] == {"first": oldest}
        assert "no tag" in refusal("memory", "tag", "ada", "now", "-d", "--store", store)

    def test_forget_asks_for_confirmation_and_no_changes_nothing(self, store: str) -> None:
        before = ids(store)
        for answer in ("n\n", ""):
            result = run("memory", "forget", "ada", "--store", store, stdin=answer)
            assert result.exit_code == 1
            assert "removed" not in result.output
            assert ids(store) == before

    def test_forget_prints_a_receipt(self, store: str) -> None:
        before = ids(store)
        receipt = run_json("memory", "forget", "ada", "--yes", "--store", store)
        assert sorted(receipt["removed"]) == sorted(before)
        assert receipt["tags"] == ["first"]
        assert receipt["nbytes"] > 0
        assert "ada" in refusal("memory", "forget", "ada", "--store", store)
        result = run("memory", "forget", "\x1b[31m[red]bob\n", "--store", store, stdin="y\n")
        assert result.exit_code == 0
        assert "removed  1 snapshot," in result.stdout

    def test_prune_keeps_the_newest_and_the_tagged(self, store: str) -> None:
        newest, middle, oldest = ids(store)
        receipt = run_json("memory", "prune", "ada", "--keep-last", "1", "--store", store)
        assert receipt["removed"] == [middle]
        kept = {move["snapshot"] for move in run_json("memory", "log", "ada", "--moves", "--store", store)["moves"]}
        assert kept == {newest, oldest}

    @pytest.mark.slow
    def test_an_export_imports_into_another_store(self, store: str, tmp_path: Path) -> None:
        file, other = tmp_path / "ada.deltamem", tmp_path / "other.sqlite"
        exported = run_json("memory", "export", "ada", file, "--store", store)
        assert exported == {"agent": "ada", "file": str(file), "nbytes": file.stat().st_size}
        imported = run_json("memory", "import", file, "--agent", "eve", "--store", other)
        assert imported == {"agent": "eve", "head": ids(store)[0], "snapshots": 3}
        assert ids(str(other), "eve") == ids(store)
        assert "eve" in refusal("memory", "import", file, "--agent", "eve", "--store", other)
        assert run("memory", "import", file, "--agent", "eve", "--replace", "--store", other).exit_code == 0
        file.write_bytes(file.read_bytes()[:-40])
        assert "damaged" in refusal("memory", "import", file, "--agent", "zoe", "--store", other)

    def test_a_damaged_agent_is_listed_with_the_others(self, tmp_path: Path) -> None:
        url = f"folder:///{tmp_path}/folder"
        with FileStore(tmp_path / "folder") as made:
            head = grow(made, "ada", 1)[0]
            grow(made, "bob", 1, seed=5)
        (blob,) = (tmp_path / "folder").rglob(f"*{head}*")
        blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
        rows = {row["agent"]: row for row in run_json("memory", "list", "--store", url)["agents"]}
        assert "damaged" in rows["ada"]["error"]
        assert rows["bob"]["turns"] == 1
        assert "damaged" in run("memory", "list", "--store", url).stdout
        assert "damaged" in refusal("memory", "show", "ada", "--store", url)


class TestDoctor:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("DELTAMEM_HOME", str(tmp_path / "home" / "deep"))
        return tmp_path

    def test_everything_required_works_here_and_no_file_is_left(self, home: Path) -> None:
        report = run_json("doctor")
        assert report["ok"]
        checks = {check["name"]: check for check in report["checks"]}
        assert {"python", "torch", "engine", "cpu", "cuda", "scan", "embedded model", "adapters", "store"} <= set(
            checks
        )
        for needed in ("python", "torch", "engine", "cpu", "scan", "store"):
            assert checks[needed]["status"] == "ok"
        assert all(check["remedy"] for check in checks.values() if check["status"] == "broken")
        assert list(home.iterdir()) == []

    def test_a_store_that_cannot_be_created_is_reported(self, home: Path) -> None:
        (home / "home").write_text("a file where a folder should be")
        result = run("doctor")
        assert result.exit_code == 1
        assert "✗ store" in result.stdout
        assert "DELTAMEM_HOME" in result.stdout
        assert "broken: store" in result.stdout

    def test_a_damaged_store_is_reported(self, home: Path) -> None:
        (home / "home" / "deep").mkdir(parents=True)
        (home / "home" / "deep" / "memory.sqlite").write_bytes(b"not a database" * 20)
        report = json.loads(run("doctor", "--json").stdout)
        assert not report["ok"]

    def test_a_wrong_scan_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from deltamem_agents.memory import delta_rule

        right = delta_rule._chunked
        monkeypatch.setattr(delta_rule, "_chunked", lambda *given: tuple(2 * result for result in right(*given)))
        (found,) = (finding for finding in checks.examine() if finding.name == "scan")
        assert found.status == "broken"

    def test_every_check_runs_even_if_all_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(name: str) -> checks.Finding:
            raise DeltaMemError("no good\nat all")

        monkeypatch.setattr(checks, "_CHECKS", tuple((name, fails) for name, _ in checks._CHECKS))
        result = run("doctor")
        assert result.exit_code == 1
        assert result.stdout.count("✗") == len(checks._CHECKS)
        assert "DeltaMemError: no good" in result.stdout
