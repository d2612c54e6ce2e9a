"""Training data of the matcher and the pointer: activations on the natural corpus and on generated conversations.

The model runs once over every conversation, question and reply, which takes most of an hour on one CPU core. Run
`python -m deltamem_agents.lab.training.recall_material ADAPTER_FOLDER` to fit both for an adapter of the default model
and to save them beside its weights.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.chat.terms import opening_words, terms_of, word_number
from deltamem_agents.inference.collecting import queries_of, written_by
from deltamem_agents.inference.memory_model import MemoryModel
from deltamem_agents.inference.passes import Prompt
from deltamem_agents.inference.prompts import Prompts
from deltamem_agents.inference.reply_text import as_text
from deltamem_agents.lab.corpus.episodes import EpisodeGenerator, EpisodeShape
from deltamem_agents.lab.corpus.facts import attributes
from deltamem_agents.lab.corpus.tables import corpus_table
from deltamem_agents.lab.corpus.values import values_of
from deltamem_agents.lab.corpus.words import open_words
from deltamem_agents.lab.training.preserved import neutral_prompts
from deltamem_agents.lab.training.recall_fit import (
    ANSWERS,
    Memory,
    Question,
    Reply,
    Say,
    Told,
    fit_matcher,
    fit_pointer,
)
from deltamem_agents.loading import load_model
from deltamem_agents.loading.embedded import EMBEDDED_MODEL
from deltamem_agents.memory.adapter_file import load_adapter
from deltamem_agents.memory.attach import CALL_KEYWORD, attach
from deltamem_agents.memory.attention import MemoryCall
from deltamem_agents.memory.pointer import Candidates, features
from deltamem_agents.memory.recall_file import save_recall
from deltamem_agents.memory.writes import Writes, scan_writes
from deltamem_agents.types import ROLES, Message, as_messages

CORPUS = Path(__file__).parents[1] / "corpus" / "natural"

SHAPES = (
    EpisodeShape(facts=10),
    EpisodeShape(facts=10, tellers=("user", "assistant", "tool", "json")),
    EpisodeShape(facts=8, about=("person", "user"), same_attribute=0.7),
    EpisodeShape(facts=6, changed=1.0),
    EpisodeShape(facts=10, values=("word", "number", "date", "time", "phrase"), everyday=0.5),
    EpisodeShape(facts=8, paired=0.6, changed=0.3),
    EpisodeShape(facts=4, about=("person",), same_attribute=1.0),
    EpisodeShape(facts=4, changed=1.0),
    EpisodeShape(facts=5, about=("person", "user"), same_attribute=1.0, changed=0.5),
    EpisodeShape(facts=8),
)
EPISODES, QUESTIONS = 80, 6
"""Number of generated conversations, and maximum number of questions about each."""

BEGUN = 0.35
"""Share of these questions whose reply is already begun, so that the query comes from within a reply."""

NEUTRAL = 56
"""Number of prompts that ask for nothing that was told."""

COMMON_SHARE = 0.015
"""A token that occurs in at least this share of the questions is ignored: it does not show where an answer stands."""

ONE_THING = 12
"""Number of attributes asked for by each wording that sounds like a question for everything, and is not."""

TELLING_STEP = 4
"""Every so many messages of a conversation, one is an example of a message that asks for nothing."""

LEAST_OPENING = 2
"""Number of sentences that a word must begin to count as an opener. A rarer one could be a name."""

REPLY_TOKENS = 48
MESSAGE_TOKENS = 512


@dataclass(frozen=True)
class Asked:
    """A question. `told_in`: indices of the messages that answer it; empty for a fact never told.

    `reply`: the reference reply, which contains `answer`; "" to fit no pointer on it. `begun`: the given beginning of
    the reply. `asks`, `overview`, `advice`: as in Question.
    """

    text: str
    told_in: tuple[int, ...] = ()
    answer: str = ""
    reply: str = ""
    begun: str = ""
    asks: bool = True
    overview: bool = False
    advice: bool = False


@dataclass(frozen=True)
class Conversation:
    """A conversation and the questions about it."""

    messages: tuple[Message, ...]
    asked: tuple[Asked, ...]


Person = Sequence[Conversation]
"""The conversations that one memory holds."""


def natural_people() -> Iterator[Person]:
    """The people of the natural corpus. Questions that no conversation answers are listed with the first one.

    Some of what people tell stands among the questions as well: a message that tells something asks for nothing.
    """
    for path in sorted(CORPUS.glob("train-*.json")):
        for person in json.loads(path.read_text(encoding="utf-8"))["people"]:
            other = [Asked(text) for text in person["never_told"]]
            other += [Asked(text, asks=False) for text in person["unrelated"]]
            conversations = []
            for told in person["conversations"]:
                messages = tuple(as_messages(told["messages"]))
                asked = [
                    Asked(
                        each["ask"],
                        tuple(each["told_in"]),
                        each["answers"][0],
                        each["reply"],
                        advice=messages[each["told_in"][0]].role == "assistant",
                    )
                    for each in told["questions"]
                ]
                tells = [Asked(each.content, asks=False) for each in messages[::TELLING_STEP] if each.role == "user"]
                conversations.append(Conversation(messages, (*asked, *tells, *other)))
                other = []
            yield conversations


def generated_people(words: Sequence[str]) -> Iterator[Person]:
    """People with one generated conversation each.

    The first also gets prompts that ask for nothing, for everything, or for what the assistant said.
    """
    overviews = json.loads((CORPUS.parent / "overview.json").read_text(encoding="utf-8"))
    other = [Asked(text, asks=False) for text in Random(1).sample(neutral_prompts(), NEUTRAL)]
    other += [Asked(text, overview=True) for text in overviews["train"]]
    names = Random(2).sample([each.name for each in attributes()], ONE_THING)
    other += [Asked(text.format(a=name)) for text in overviews["one_thing"] for name in names]
    advice = json.loads((CORPUS.parent / "advice.json").read_text(encoding="utf-8"))["train"]
    other += [Asked(text, advice=True) for text in advice]
    everyday = json.loads((CORPUS.parent / "everyday.json").read_text(encoding="utf-8"))["train"]
    other += [Asked(text, asks=False) for text in everyday]
    for number in range(EPISODES):
        rng = Random(number)
        generator = EpisodeGenerator(words, SHAPES[number % len(SHAPES)])
        episode = generator.draw(rng)
        asked = [
            Asked(
                each.question,
                (each.told.message,),
                each.answer,
                each.reply,
                each.prefix if rng.random() < BEGUN else "",
            )
            for each in rng.sample(episode.questions, min(QUESTIONS, len(episode.questions)))
            if each.told is not None
        ]
        yield [Conversation(episode.messages, (*asked, Asked(generator.untold(rng, episode)), *other))]
        other = []


@torch.no_grad()
def collect_memory(speaker: MemoryModel, person: Person) -> Memory:
    """The statements of all conversations, and the questions with their queries."""
    layers, heads, rank = speaker.adapter.zero_state().geometry
    none = Writes.none(layers, heads, rank, rank if speaker.adapter.config.rankwise_gates else 1)
    statements: list[Told] = []
    questions: list[Question] = []
    for told in person:
        (prompt,) = speaker.prompts.segments(told.messages, None)
        found, start = written_by(speaker, prompt), len(statements)
        for place, message in enumerate(told.messages):
            writes = found[place].writes if place in found else none
            statements.append(Told(writes.half(), tuple(terms_of(message.content)), message.role))
        for each in told.asked:
            begun = [Message("assistant", each.begun)] if each.begun else []
            queries = queries_of(speaker, speaker.prompts.reading([Message("user", each.text), *begun]))
            right = tuple(start + place for place in each.told_in)
            terms = tuple(terms_of(each.text))
            marks = (each.asks, each.overview, each.advice)
            questions.append(Question(queries[-1], queries.mean(0), terms, right, *marks))
    return Memory(tuple(statements), tuple(questions))


@torch.no_grad()
def collect_replies(speaker: MemoryModel, person: Person, common: frozenset[int]) -> Iterator[Reply]:
    """Reference replies, with the statement's state read and its exchange shown before the question, as in use."""
    for told in person:
        (prompt,) = speaker.prompts.segments(told.messages, None)
        found = written_by(speaker, prompt)
        for each in told.asked:
            if not each.reply or each.told_in[-1] not in found:
                continue
            place = each.told_in[-1]
            begin = place if told.messages[place].role == "user" else max(0, place - 1)
            shown = speaker.prompts.reading([*told.messages[begin : begin + 2], Message("user", each.text)])
            end = speaker.tokenizer.eos_token_id
            said = [*_encoded(speaker, each.reply), end][:REPLY_TOKENS]
            logits, queries = _steps(speaker, shown, said, found[place].writes)
            piece = found[place]
            pointed_at = (piece.writes, [piece.tokens[at] for at in piece.written], piece.tokens)
            asked = frozenset(question_tokens(speaker, each.text)) - common
            candidates = Candidates.of([pointed_at], queries[0], asked)
            whole = _reply(candidates, logits, queries, said, answer_in(speaker, said, each.answer))
            yield whole
            begins = answer_in(speaker, piece.tokens, each.answer)
            if any(begins):
                yield _at_once(whole, int(whole.owners[begins.index(True)]))


def _steps(speaker: MemoryModel, prompt: Prompt, said: Sequence[int], writes: Writes) -> tuple[Tensor, Tensor]:
    """Logits (R, vocabulary) and queries (R, layers, heads, r) at the positions that predict `said`."""
    count, more = len(said), (True,) * (len(said) - 1)
    call = MemoryCall(
        scan_writes(speaker.adapter.config, writes),
        torch.tensor([prompt.reads + more]),
        replies=torch.tensor([prompt.replies + more]),
        queries={},
    )
    ids = torch.tensor([[*prompt.ids, *said[:-1]]])
    out = speaker.model(input_ids=ids, logits_to_keep=torch.arange(-count, 0), **{CALL_KEYWORD: call})
    assert call.queries is not None
    queries = torch.stack([call.queries[slot][0, :, -count:] for slot in sorted(call.queries)])
    return out.logits[0].float(), queries.permute(2, 0, 1, 3)


def _reply(
    candidates: Candidates, logits: Tensor, queries: Tensor, said: Sequence[int], answering: Sequence[bool]
) -> Reply:
    different, owners = candidates.ids.unique(return_inverse=True)
    places = {token: at for at, token in enumerate(different.tolist())}
    likely = logits.log_softmax(-1)
    return Reply(
        torch.stack([features(logits[at], queries[at], candidates, said[:at]) for at in range(len(said))]),
        owners,
        likely[:, different],
        torch.tensor([places.get(token, -1) for token in said]),
        likely.gather(1, torch.tensor(said)[:, None])[:, 0],
        torch.tensor(answering),
    )


def _at_once(whole: Reply, token: int) -> Reply:
    """The first step of the reply, with the answer's first token as its target."""
    likely = whole.log_probabilities[:1]
    return Reply(
        whole.features[:1],
        whole.owners,
        likely,
        torch.tensor([token]),
        likely[:, token],
        torch.tensor([True]),
        at_once=True,
    )


def answer_in(speaker: MemoryModel, tokens: Sequence[int], answer: str) -> list[bool]:
    """Which of a text's tokens overlap the answer's first occurrence as a whole word; all False if it has none."""
    ends = [len(as_text(speaker.tokenizer, tokens[:count])) for count in range(len(tokens) + 1)]
    text = as_text(speaker.tokenizer, tokens).casefold()
    found = re.search(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)", text)
    if found is None:
        return [False] * len(tokens)
    return [end > found.start() and begin < found.end() for begin, end in pairwise(ends)]


def _encoded(speaker: MemoryModel, text: str) -> list[int]:
    return list(speaker.tokenizer.encode(text, add_special_tokens=False))


def question_tokens(speaker: MemoryModel, text: str) -> list[int]:
    """The question's tokens as at the beginning of a text, and as within one (after a space)."""
    return [*_encoded(speaker, text), *_encoded(speaker, f" {text}")]


def common_tokens(speaker: MemoryModel, people: Sequence[Person]) -> frozenset[int]:
    """Tokens that occur in at least COMMON_SHARE of the questions."""
    asked = [each.text for person in people for told in person for each in told.asked if each.reply]
    counts = Counter(token for text in asked for token in set(question_tokens(speaker, text)))
    return frozenset(token for token, count in counts.items() if count >= COMMON_SHARE * len(asked))


def relation_words() -> frozenset[int]:
    """Numbers of the words that tell whose a fact is by relation, such as "sister"."""
    return frozenset(map(word_number, corpus_table("relations")))


def sentence_openers(people: Sequence[Person]) -> frozenset[int]:
    """Numbers of the words that begin sentences and name nobody."""
    told = {each.content for person in people for told in person for each in told.messages}
    asked = {each.text for person in people for told in person for each in told.asked}
    counts = Counter(word for text in told | asked for word in opening_words(text))
    names = {name.casefold() for name in values_of("person", "train")}
    return frozenset(
        word_number(word) for word, count in counts.items() if count >= LEAST_OPENING and word not in names
    )


def fit_recall(folder: Path, say: Say) -> None:
    """Fits matcher and pointer for the default model's adapter in `folder` and saves them there."""
    loaded = load_model(EMBEDDED_MODEL)
    adapter = load_adapter(folder, loaded.model, loaded.name)
    attach(loaded.model, adapter)
    prompts = Prompts(ChatTemplate(loaded.tokenizer), loaded.context_tokens, ROLES, MESSAGE_TOKENS)
    speaker = MemoryModel(loaded.model, loaded.tokenizer, adapter, prompts)
    people = [*natural_people(), *generated_people(open_words(loaded.tokenizer))]
    common = common_tokens(speaker, people)
    memories: list[Memory] = []
    replies: list[Reply] = []
    for number, person in enumerate(people, 1):
        memories.append(collect_memory(speaker, person))
        replies += collect_replies(speaker, person, common)
        say(f"collected {number} of {len(people)} memories")
    eager = fit_pointer(replies, say, common, ANSWERS)
    matcher = replace(fit_matcher(memories, say), relations=relation_words(), openers=sentence_openers(people))
    save_recall(folder, matcher, replace(fit_pointer(replies, say, common), eager=eager))


if __name__ == "__main__":
    fit_recall(Path(sys.argv[1]), print)
