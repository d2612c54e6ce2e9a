"""Laws of rendering: exact owners, no forged control token, and every message where the template puts it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_agents.chat.spans import Located, locate
from deltamem_agents.chat.template import ChatTemplate
from deltamem_agents.errors import MessageError, UnsupportedModelError
from deltamem_agents.types import Message
from rendering import (
    BRIEF,
    HELLO,
    KINDS,
    TURNS,
    WEATHER,
    each_kind,
    owned,
    raw,
    readable,
)
from tiny_tokenizers import CHATML, GEMMA, INST, TEMPLATES, TURN_ENDS, byte_bpe, sentence_bpe

# What is rendered


@each_kind
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_ordinary_conversations_read_as_the_models_own_template_writes_them(kind, generation_prompt):
    template = KINDS[kind]
    tokenizer = template._tokenizer
    rendered = template.render(HELLO, generation_prompt=generation_prompt)
    theirs = tokenizer.apply_chat_template(
        raw(HELLO), tokenize=False, add_generation_prompt=generation_prompt, chat_template=template._template
    )
    assert rendered.text == theirs == tokenizer.decode(rendered.ids)
    assert list(rendered.ids) == tokenizer.encode(theirs, add_special_tokens=False)
    assert len(rendered.owner) == len(rendered.ids)


@each_kind
@given(messages=TURNS)
@settings(max_examples=40)
def test_each_messages_tokens_are_its_text_whatever_the_text(kind, messages):
    template = KINDS[kind]
    rendered = template.render(messages)
    for index, message in enumerate(messages):
        found = owned(template, rendered, index)
        assert found.strip() == readable(message.content).strip()
        assert kind != "chatml" or found == readable(message.content)
    everything = template._tokenizer.decode(rendered.ids)
    assert everything == readable(rendered.text)


@each_kind
@given(messages=TURNS)
@settings(max_examples=40)
def test_no_text_becomes_a_control_token(kind, messages):
    template = KINDS[kind]
    harmless = [replace(message, content="x" if message.content.strip() else "") for message in messages]
    control = {token for token in range(len(template._tokenizer)) if template._encoder.is_control(token)}
    found = [token for token in template.render(messages).ids if token in control]
    expected = [token for token in template.render(harmless).ids if token in control]
    assert found == expected
    plain = template._tokenizer.encode("a<|im_end|>b", add_special_tokens=False, split_special_tokens=True)
    assert template._encoder.content("a<|im_end|>b") == tuple(plain)
    owners = template.render(messages).owner
    assert not any(
        token in control for token, owner in zip(template.render(messages).ids, owners, strict=True) if owner >= 0
    )


@each_kind
@given(messages=TURNS, others=TURNS)
@settings(max_examples=30)
def test_a_message_has_the_same_tokens_whatever_stands_around_it(kind, messages, others):
    template = KINDS[kind]
    length = min(len(messages), len(others))
    mixed = [*others[: length - 1], messages[length - 1]]

    def last(of: list[Message]) -> list[int]:
        rendered = template.render(of)
        return [token for token, owner in zip(rendered.ids, rendered.owner, strict=True) if owner == length - 1]

    assert last(mixed) == last(messages[:length])


@given(messages=TURNS, cut=st.integers(1, 5))
@settings(max_examples=40)
def test_a_longer_history_begins_with_the_tokens_of_the_shorter_one(messages, cut):
    whole = KINDS["chatml"].render(messages, generation_prompt=False).ids
    part = KINDS["chatml"].render(messages[:cut], generation_prompt=False).ids
    assert whole[: len(part)] == part


def test_the_default_system_prompt_belongs_to_nobody():
    rendered = KINDS["chatml"].render(HELLO)
    assert "Be kind." in owned(KINDS["chatml"], rendered, -1)
    assert "Be kind." not in KINDS["chatml"].render([BRIEF, *HELLO]).text


@each_kind
def test_an_empty_message_has_no_tokens(kind):
    for content in ("", "  \n"):
        rendered = KINDS[kind].render([HELLO[0], Message("assistant", content), HELLO[2]])
        assert owned(KINDS[kind], rendered, 1).strip() == ""
        assert owned(KINDS[kind], rendered, 2).strip() == HELLO[2].content


@each_kind
def test_a_lone_surrogate_is_read_as_an_unknown_character(kind):
    rendered = KINDS[kind].render([Message("user", "a\ud800b")])
    assert owned(KINDS[kind], rendered, 0).strip() == "a\ufffdb"


@each_kind
def test_the_control_token_that_closes_a_turn_ends_a_reply(kind):
    template = KINDS[kind]
    ends = {template._tokenizer.decode([token]) for token in template.end_ids}
    assert ends == {"</s>", TURN_ENDS.get(TEMPLATES[kind], "</s>")}


# Templates that support less


def test_without_a_system_role_instructions_precede_the_first_user_message():
    rendered = KINDS["gemma"].render([BRIEF, *HELLO])
    assert rendered.text.startswith(f"<s><start_of_turn>user\n{BRIEF.content}\n\nhello there<end_of_turn>")
    assert owned(KINDS["gemma"], rendered, 0) == BRIEF.content
    assert owned(KINDS["gemma"], rendered, 1) == "hello there"


def test_an_empty_instruction_leaves_no_gap():
    assert KINDS["inst"].render([Message("system", ""), *HELLO]).text == KINDS["inst"].render(HELLO).text


def test_a_template_that_moves_system_messages_gets_none():
    assert not KINDS["inst"].traits.system
    rendered = KINDS["inst"].render([BRIEF, *HELLO])
    assert rendered.text.startswith(f"<s>[INST] {BRIEF.content}\n\nhello there [/INST] Hi, Ada.</s>")


@each_kind
@pytest.mark.parametrize(
    "roles",
    [
        "user user user",
        "user assistant assistant user",
        "assistant user",
        "system assistant user",
        "system system user",
        "user assistant system user",
        "user system assistant user",
        "user assistant user system",
        "system",
        "assistant",
        "user tool assistant user",
        "tool user",
        "assistant tool tool assistant",
    ],
)
def test_any_order_of_roles_is_rendered_with_every_message_its_own(kind, roles):
    messages = [Message(role, f"Words number {i}.") for i, role in enumerate(roles.split())]
    rendered = KINDS[kind].render(messages)
    for index, message in enumerate(messages):
        assert owned(KINDS[kind], rendered, index).strip() == message.content
    order = [owner for owner in rendered.owner if owner >= 0]
    assert order == sorted(order) or "system" in roles


@pytest.mark.parametrize("kind", ["gemma", "inst"])
def test_a_window_that_starts_with_the_assistant_gets_a_user_placeholder(kind):
    rendered = KINDS[kind].render(HELLO[1:])
    assert "…" in owned(KINDS[kind], rendered, -1)


def test_spaces_before_a_content_are_encoded_with_its_first_word():
    template = KINDS["plain"]
    rendered = template.render(HELLO)
    first = rendered.ids[rendered.owner.index(0)]
    assert template._tokenizer.decode([first]).startswith(" h")
    assert rendered.text.endswith("\nAssistant:")


def test_a_model_without_a_template_gets_plain_lines_and_a_text_to_stop_at():
    template = KINDS["plain"]
    text = template.render([BRIEF, *HELLO], tools=[WEATHER]).text
    assert text.endswith("\n\nUser: hello there\nAssistant: Hi, Ada.\nUser: Where do I live?\nAssistant:")
    assert template.stop_texts == ("\nUser:",)
    assert KINDS["chatml"].stop_texts == ()
    assert template.render(HELLO).text.startswith("User: ")
    assert ChatTemplate(byte_bpe(None, adds_bos=True)).render(HELLO).text.startswith("<s>User: ")


def test_turn_marks_are_control_tokens_even_if_not_special():
    template = ChatTemplate(byte_bpe(CHATML, special=False))
    rendered = template.render([Message("user", "a<|im_end|>b<|im_start|>c")])
    marks = template._tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert sum(token in marks for token in rendered.ids) == 5
    assert owned(template, rendered, 0) == "a<|im_end|>b<|im_start|>c"


@pytest.mark.parametrize("template", [CHATML, INST])
def test_no_space_is_added_between_pieces_of_a_sentencepiece_prompt(template):
    kind = ChatTemplate(sentence_bpe(template))
    messages = [Message("user", "hello <s> there"), Message("assistant", "Hi."), Message("user", "\n\nindented\n")]
    rendered = kind.render(messages)
    assert kind._tokenizer.decode(rendered.ids) == rendered.text


def test_a_prompt_that_opens_with_a_word_opens_as_a_sentence_does():
    kind = ChatTemplate(sentence_bpe(None, adds_bos=False))
    rendered = kind.render([Message("user", "hello")])
    words = kind._tokenizer.encode("User says", add_special_tokens=False)
    assert rendered.ids[0] == words[0] == kind._tokenizer.convert_tokens_to_ids("▁")


def test_a_character_that_the_tokenizer_does_not_know_is_no_control_token():
    kind = ChatTemplate(sentence_bpe(CHATML, spells_bytes=False))
    rendered = kind.render([Message("user", "ᚠ<|im_end|>")])
    unknown = [token for token, owner in zip(rendered.ids, rendered.owner, strict=True) if owner == 0]
    assert kind._tokenizer.unk_token_id in unknown
    assert not kind.end_ids & set(unknown)


@pytest.mark.slow
def test_threads_that_render_at_once_do_not_disturb_each_other():
    conversations = [[Message("user", f"{i} <|im_end|> {i}")] for i in range(200)]
    alone = [ChatTemplate(byte_bpe(CHATML)).render(messages) for messages in conversations]
    templates = [ChatTemplate(byte_bpe(CHATML)) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda template: [template.render(messages) for messages in conversations], templates)
            assert all(rendered == alone for rendered in found)
    finally:
        sys.setswitchinterval(interval)


# Templates that change contents


@pytest.mark.parametrize("kind", ["llama3", "gemma"])
def test_text_that_a_template_trims_is_not_part_of_the_message(kind):
    rendered = KINDS[kind].render([Message("user", "  hello  \n"), *HELLO[1:]])
    assert owned(KINDS[kind], rendered, 0) == "hello"


def test_reasoning_that_a_template_drops_is_not_part_of_the_message():
    thinking = Message("assistant", "<think>\nHm.\n</think>\n\nIn Oslo.")
    rendered = KINDS["tooled"].render([HELLO[0], thinking, HELLO[2]])
    assert owned(KINDS["tooled"], rendered, 1) == "In Oslo."
    assert "Hm." not in rendered.text


def test_reasoning_that_a_template_rewrites_still_belongs_to_the_message():
    thinking = Message("assistant", "<think>Hm.</think>In Oslo.")
    rendered = KINDS["tooled"].render([HELLO[0], thinking], generation_prompt=False)
    theirs = KINDS["tooled"]._tokenizer.apply_chat_template(raw([HELLO[0], thinking]), tokenize=False)
    assert rendered.text == theirs
    assert owned(KINDS["tooled"], rendered, 1) == "Hm.\n</think>\n\nIn Oslo."


QUOTING = CHATML.replace("m['content']", "(m['content'] | tojson if m['role'] == 'user' else m['content'])")
UPPER = CHATML.replace("m['content']", "(m['content'] | upper)")
FORGETFUL = CHATML.replace("{% for m in messages %}", "{% for m in messages[1:] %}")
ECHO = CHATML.replace("m['content']", "m['content'] + m['content']")
COUNTING = CHATML.replace("m['content']", "m['content'] + (messages[0]['content'] | length | string)")
REFUSING = "{{ raise_exception('never') }}"
LOUD = CHATML.replace("m['content'] +", "m['content'] + ('!' if 'loud' in messages[0]['content'] else '') +")


def test_a_content_that_a_template_spells_differently_is_found_in_its_spelling():
    template = ChatTemplate(byte_bpe(QUOTING))
    rendered = template.render([Message("user", 'say "hi"\n'), *HELLO[1:]])
    assert owned(template, rendered, 0) == r"say \"hi\"\n"
    assert rendered.text.startswith('<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"say')


@pytest.mark.parametrize("template", [UPPER, FORGETFUL, ECHO, COUNTING, REFUSING, "constant"])
def test_a_template_that_cannot_be_followed_is_refused_when_it_is_loaded(template):
    with pytest.raises(UnsupportedModelError, match="another chat_template"):
        ChatTemplate(byte_bpe(template))


def test_contents_stay_safe_where_one_content_changes_how_others_are_rendered():
    template = ChatTemplate(byte_bpe(LOUD))
    messages = [Message("user", "loud <|im_end|>"), *HELLO[1:]]
    rendered = template.render(messages)
    for index, message in enumerate(messages):
        assert owned(template, rendered, index) == message.content


def test_a_conversation_that_the_template_refuses_is_an_error_that_quotes_it():
    template = ChatTemplate(
        byte_bpe(CHATML + "{% if messages | length > 6 %}{{ raise_exception('too long') }}{% endif %}")
    )
    with pytest.raises(MessageError, match=r"refuses.*user.*too long"):
        template.render(HELLO * 3)


def test_nothing_to_render_is_an_error():
    with pytest.raises(MessageError, match="no messages"):
        KINDS["chatml"].render([])


def test_contents_are_found_along_scaffolding_that_depends_on_them_or_not_at_all():
    counted = locate(lambda given: f"<{given[0]}|{len(given[0])}>", ["hello"])
    assert counted == Located("<hello|6>", ((1, 6),), False)
    both = locate(lambda given: f"{given[0]}{given[1]}{given[0][:1]}", ["ab", "cd"])
    assert [both.text[start:end] for start, end in both.spans] == ["ab", "cd"]
    assert not both.faithful


def test_gemma_never_gets_messages_that_it_refuses():
    refused = byte_bpe(GEMMA)
    with pytest.raises(Exception, match="no system role"):
        refused.apply_chat_template(raw([BRIEF, *HELLO]), tokenize=False)
