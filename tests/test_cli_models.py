"""The commands chat, adapter and train, on a random two-layer model."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_runs import refusal, run, run_json
from deltamem_agents.cli.screen import printable
from deltamem_agents.config import AdapterConfig
from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.errors import WindowError
from deltamem_agents.lab.training import material, trainer
from deltamem_agents.memory.adapter_file import load_adapter, read_config, read_weights
from deltamem_agents.types import Message, TurnChunk
from tiny_engine import random_adapter, tiny_llama
from tiny_folders import Tiny
from tiny_training import few_texts


class TestChat:
    @pytest.fixture
    def options(self, tiny: Tiny, tmp_path: Path) -> list[str]:
        return [*tiny.options, "--store", str(tmp_path / "chat.sqlite"), "--agent", "ada", "--max-tokens", "6"]

    def head(self, options: list[str]) -> dict[str, Any] | None:
        store = options[options.index("--store") + 1]
        rows = run_json("memory", "list", "--store", store)["agents"]
        return rows[0] if rows else None

    @pytest.mark.slow
    def test_an_answer_is_saved_and_the_next_process_continues_from_it(self, options: list[str]) -> None:
        first = run_json("chat", *options, "--once", "Hello.")
        assert self.head(options)["head"] == first["snapshot"]
        assert first["usage"]["completion_tokens"] <= 6
        assert first["facts"]["alignment"] == "fresh"
        assert first["facts"]["tokens_written"] > 0
        second = run_json("chat", *options, "--once", "Another thing.")
        assert second["facts"]["alignment"] == "windowed"
        head = self.head(options)
        assert (head["head"], head["turns"]) == (second["snapshot"], 2)

    def test_the_reply_goes_to_stdout_and_the_facts_to_stderr(self, options: list[str]) -> None:
        asked = ("chat", *options, "--once", "Hello.", "--memory", "readonly")
        answer, result = run_json(*asked), run(*asked)
        assert result.stdout.rstrip("\n") == printable(answer["text"], keep="\n\t").rstrip("\n")
        assert "state 128 bytes · nothing saved" in result.stderr

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["readonly", "off"])
    def test_only_readwrite_writes(self, mode: str, options: list[str]) -> None:
        run("chat", *options, "--once", "Hello.")
        before = self.head(options)
        answer = run_json("chat", *options, "--once", "More.", "--memory", mode)
        assert answer["snapshot"] is None
        assert answer["facts"]["memory"] == mode
        assert self.head(options) == before

    def test_a_conversation_keeps_its_history(self, options: list[str]) -> None:
        result = run("chat", *options, stdin="Hello.\n\nMore.\n/memory\n/frob\n/quit\nnever read\n")
        assert result.exit_code == 0
        assert "/frob is unknown" in result.stderr
        assert "2 turns, 4 messages" in result.stdout
        assert self.head(options)["turns"] == 2
        prompts = [int(found) for found in re.findall(r"prompt (\d+) tokens", result.stdout)]
        assert len(prompts) == 2
        assert prompts[1] > prompts[0]

    def test_forget_in_a_chat_asks_and_starts_again(self, options: list[str]) -> None:
        result = run("chat", *options, stdin="Hello.\n/forget\nn\n/forget\ny\n/memory\n")
        assert result.exit_code == 0
        assert "forgot 1 snapshot" in result.stdout
        assert "remembers nothing yet" in result.stdout
        assert self.head(options) is None

    def test_ctrl_c_in_a_reply_cancels_the_turn_and_changes_nothing(
        self, options: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, asked = DeltaMemEngine.stream_turn, []

        def interrupted(self: DeltaMemEngine, agent: str, messages: list[Message], **rest: Any) -> Iterator[Any]:
            asked.append([message.content for message in messages])
            chunks = whole(self, agent, messages, **rest)
            if len(asked) == 2:
                yield next(chunks)
                raise KeyboardInterrupt
            yield from chunks

        monkeypatch.setattr(DeltaMemEngine, "stream_turn", interrupted)
        result = run("chat", *options, stdin="one\ntwo\nthree\n")
        assert result.exit_code == 0
        assert "cancelled" in result.stdout
        assert self.head(options)["turns"] == 2
        assert "two" not in asked[2]
        assert asked[2][-1] == "three"

    def test_ctrl_c_with_once_is_exit_code_130(self, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any, **__: Any) -> Iterator[Any]:
            raise KeyboardInterrupt
            yield

        monkeypatch.setattr(DeltaMemEngine, "stream_turn", interrupted)
        assert run("chat", *options, "--once", "Hello.").exit_code == 130
        assert self.head(options) is None

    def test_a_refused_turn_does_not_end_the_chat(self, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        stream_turn = DeltaMemEngine.stream_turn

        def refusing(self: DeltaMemEngine, agent: str, messages: list[Message], **asked: Any) -> Iterator[TurnChunk]:
            if messages[-1].content == "no":
                raise WindowError("it does not fit")
            return stream_turn(self, agent, messages, **asked)

        monkeypatch.setattr(DeltaMemEngine, "stream_turn", refusing)
        result = run("chat", *options, stdin="no\nHello.\n")
        assert result.exit_code == 0
        assert result.stderr.count("error: ") == 1
        assert self.head(options)["turns"] == 1

    def test_a_model_that_cannot_be_opened_gives_one_line(self, tiny: Tiny, tmp_path: Path) -> None:
        assert "nonesuch" in refusal("chat", "--agent", "a", "--model", "nonesuch", "--once", "x")
        assert "no adapter ships" in refusal("chat", "--agent", "a", "--model", tiny.model, "--once", "x")


WORDS = ["amber", "basil", "cedar", "delta", "ember", "fable", "grove", "haven", "ivory", "jewel", "lemon", "mango"] * 9


class TestAdapter:
    def test_show_prints_the_geometry(self, tiny: Tiny) -> None:
        shown = run_json("adapter", "show", tiny.adapter)
        assert shown["layers"] == [0, 1]
        assert shown["config"]["rank"] == 4
        assert shown["state_bytes"] == 128
        assert "4×4" in run("adapter", "show", tiny.adapter).stdout
        assert "nowhere" in refusal("adapter", "show", "nowhere")

    def test_a_released_adapter_is_converted_with_equal_weights(self, tmp_path: Path) -> None:
        source, target = released_adapter(tmp_path / "released"), tmp_path / "ours"
        written = run_json("adapter", "convert", source, target, "--base-model", "tiny")
        assert written["config"]["base_model"] == "tiny"
        assert read_config(target).layers == 2
        before, after = (read_weights(folder, read_config(folder)) for folder in (source, target))
        assert set(before) == set(after)
        assert all(before[name].equal(after[name]) for name in before)
        load_adapter(target, tiny_llama())
        assert "already" in refusal("adapter", "convert", source, target)

    def test_gates_and_output_scale_are_adjusted(self, tiny: Tiny, tmp_path: Path) -> None:
        target, wishes = tmp_path / "tuned", ("--sharper", "2", "--louder", "1.5")
        assert run_json("adapter", "gates", tiny.adapter, target, *wishes)["config"]["rank"] == 4
        before, after = (read_weights(folder, read_config(folder)) for folder in (tiny.adapter, target))
        changed = {name.rsplit(".", 1)[-1] for name in before if not before[name].equal(after[name])}
        assert changed == {"beta_proj", "beta_bias", "delta_o_proj"}
        load_adapter(target, tiny_llama())
        assert "already" in refusal("adapter", "gates", tiny.adapter, target)
        assert "no read gates" in refusal("adapter", "gates", tiny.adapter, tmp_path / "other", "--read", "-1")
        assert not (tmp_path / "other").exists()


def released_adapter(folder: Path) -> Path:
    """An adapter in the released format: a .pt file of tensors, and a JSON file without this package's keys."""
    model = tiny_llama()
    adapter = random_adapter(model, AdapterConfig(rank=4))
    folder.mkdir()
    names = {name: re.sub(r"^layers\.(\d+)", r"model.layers.\1.self_attn", name) for name in adapter.state_dict()}
    torch.save({names[name]: value for name, value in adapter.state_dict().items()}, folder / "delta_mem_adapter.pt")
    (folder / "delta_mem_config.json").write_text(json.dumps({"rank": 4, "delta_heads": ["q", "o"]}))
    return folder


GEOMETRY = {"rank": 4, "read_scope": "replies"}


class TestTrain:
    def recipe(self, tiny: Tiny, path: Path, **changed: Any) -> Path:
        stage = {"steps": 2, "facts": [1], "questions": 2, "shapes": [{"distractors": [0, 0]}], "warmup": 1}
        recipe = {"format": 2, "model": str(tiny.model), "adapter": GEOMETRY, "stages": [stage]}
        recipe["warm_start"] = {"episodes": 4, "shapes": stage["shapes"], "rehearsal": None}
        path.write_text(json.dumps(recipe | changed))
        return path

    @pytest.mark.slow
    def test_a_run_saves_an_adapter_and_a_picture_and_can_continue(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(material, "open_words", lambda tokenizer: [f"{word}{n}" for n, word in enumerate(WORDS)])
        monkeypatch.setattr(trainer, "EVALUATED_QUESTIONS", 2)
        few_texts(monkeypatch)
        out = tmp_path / "run"
        recipe = self.recipe(tiny, tmp_path / "recipe.json")
        result = run("train", recipe, "--out", out)
        assert result.exit_code == 0, result.output
        assert "held-out values" in result.stderr
        assert str(out / "training.png") in result.stdout
        assert run_json("adapter", "show", out)["config"]["rank"] == 4
        again = run("train", recipe, "--out", out)
        assert again.exit_code == 0
        assert "continuing at step 2 of 2" in again.stderr
        (out / "training.png").unlink()
        assert run("train", "--plot", "--out", out).exit_code == 0
        assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
        other = self.recipe(tiny, tmp_path / "other.json", seed=7)
        refused = run("train", other, "--out", out)
        assert refused.exit_code == 1
        assert "another recipe" in refused.stderr
        more = tmp_path / "more"
        assert run("train", other, "--from", out, "--out", more).exit_code == 0
        wider = self.recipe(tiny, tmp_path / "wider.json", adapter={**GEOMETRY, "rank": 5})
        assert "rank=4, the recipe expects rank=5" in refusal("train", wider, "--from", out, "--out", tmp_path / "none")

    def test_ctrl_c_says_how_to_continue(self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(self: trainer.Trainer) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(trainer.Trainer, "run", interrupted)
        result = run("train", self.recipe(tiny, tmp_path / "recipe.json"), "--out", tmp_path / "run")
        assert result.exit_code == 130
        assert "stopped at step 0; the same command continues" in result.stderr

    def test_missing_optional_packages_are_named_before_a_run(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainer.Trainer, "run", lambda self: None)
        recipe = self.recipe(tiny, tmp_path / "recipe.json")
        assert "without" not in run("train", recipe, "--out", tmp_path / "run").stderr
        for module in ("numba", "matplotlib"):
            monkeypatch.setitem(sys.modules, module, None)
        said = run("train", recipe, "--out", tmp_path / "run").stderr
        assert "without numba, steps are slower; pip install 'deltamem-agents[lab]'" in said
        assert "without matplotlib, no picture is drawn; pip install 'deltamem-agents[lab]'" in said

    def test_shipped_recipes_are_listed_and_unknown_ones_refused(self, tmp_path: Path) -> None:
        assert "wide" in run("train", "--list").stdout
        assert "wide" in refusal("train", "nonesuch", "--out", tmp_path)
        assert "log.jsonl" in refusal("train", "--plot", "--out", tmp_path)
