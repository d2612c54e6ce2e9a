"""How facts are told and asked in general, whatever they are about. Written for this project.

Slots: {mine} is "my city" or "Tom's city" as the user says it, {yours} the same as the assistant says it,
{Mine} and {Yours} with a capital; {a} is the bare attribute, {v} the value. A second fact in the same
sentence has {mine2} and {v2}. A value always stands behind a space, so that it has the tokens that it has in
a reply, and never begins a message. Whatever is named HELD_OUT is kept for evaluation, and built otherwise
than what is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

STATEMENTS = (
    "{Mine} is {v}.",
    "By the way, {mine} is {v}.",
    "Just so you know, {mine} is {v}.",
    "I should mention that {mine} is {v}.",
    "Please remember that {mine} is {v}.",
    "One more thing: {mine} is {v}.",
    "For the record, {mine} is {v}.",
    "You may want to note that {mine} is {v}.",
    "I wanted to tell you {mine} is {v}.",
    "Hi! {Mine} is {v}.",
    "Oh, and {mine} is {v}, in case it matters.",
    "Before I forget, {mine} is {v}.",
    "{Mine}? It's {v}.",
    "As for {mine}, it is {v}.",
    "So, {mine} is {v}, and I thought you should know.",
    "It was a long day. Anyway, {mine} is {v}.",
    "{Mine} is {v}, and it has been for years.",
    "Did I tell you that {mine} is {v}?",
    "Guess what: {mine} is {v}!",
    "Note that {mine} is {v}. What do you think?",
    "I have decided that {mine} is {v}.",
    "Let me tell you {mine}: {v}.",
    "With {v} as {mine}, there is little to complain about.",
    "Since {mine} is {v}, I often have to explain it.",
    "When people ask about {mine}, I say {v}.",
    "{Mine}, which is {v}, hardly ever comes up.",
    "Although nobody asked, {mine} is {v}.",
    "Because {mine} is {v}, I had to smile this morning.",
    "I believe that {v} is {mine}, and I am quite sure of it.",
    "You can put down {v} as {mine}.",
    "Everyone at home knows that {v} is {mine}.",
    "If you need {mine} at some point, use {v}.",
    "Save this for later: {mine} = {v}.",
    "{Mine}: {v}.",
    "I just checked, and {mine} is {v}.",
    "There are many things I could tell you, for example that {mine} is {v}.",
    "I was told today that {mine} is {v}.",
    "It took me a while to find out, but {mine} is {v}.",
    "A friend asked me about {mine} yesterday. I said it is {v}, of course.",
    "Could you keep in mind that {mine} is {v}? I tend to forget such things.",
    "What would you say if I told you that {mine} is {v}?",
    "I don't talk about {mine} much. It is {v}.",
    "My notes say {v} next to {mine}.",
    "Not that it matters, but {mine} happens to be {v}.",
    "We talked about {mine} at dinner, and yes, it is {v}.",
    "They have {v} listed as {mine}, which is right.",
    "Is it strange that {mine} is {v}?",
    "For your files: {v} is {mine}.",
    "I am writing to say that {mine} is {v}. That is all for now.",
    "Let's begin with {mine}. It is {v}.",
    "I filled in a form today and had to write {v} where it asked for {mine}.",
    "You should know two things. I like short answers, and {mine} is {v}.",
    "People are often surprised to hear that {mine} is {v}.",
)
LOOSE_STATEMENTS = ("The {a} is {v}.", "Our {a} is {v}.")
"""These leave open whose it is: only where nothing is told about anybody else."""

HELD_OUT_STATEMENTS = (
    "If somebody ever asks you about {mine}, the right answer will be {v}.",
    "After much back and forth we ended up with {v} for {mine}.",
    "Out of everything on offer, {v} won the race to become {mine}.",
    "Question: {mine}. Answer: {v}.",
    "It turns out that nothing other than {v} could be {mine}.",
    "You might have guessed {v}, and as far as {mine} goes you would be right.",
    "Here is a small secret of this household, {v}, better known as {mine}.",
    "Whoever wants to hear about {mine} has to be told of {v}.",
    "There is {v}, and then there is everything else, at least when it comes to {mine}.",
    "Somebody wrote {v} on the label that describes {mine}.",
)

PAIRED_STATEMENTS = (
    "{Mine} is {v} and {mine2} is {v2}.",
    "{Mine} is {v}, while {mine2} is {v2}.",
    "Two things: {mine} is {v}, and {mine2} is {v2}.",
    "I should say that {mine} is {v} and that {mine2} is {v2}.",
    "Let me introduce myself properly: {mine} is {v}, {mine2} is {v2}.",
    "By the way, {mine} is {v}. Also, {mine2} is {v2}.",
    "Apart from the fact that {mine} is {v}, you should know that {mine2} is {v2}.",
)
HELD_OUT_PAIRED_STATEMENTS = (
    "Take {v} for {mine} together with {v2} for {mine2}, and the picture is complete.",
    "Whereas {v} answers the question about {mine}, it is {v2} that answers the one about {mine2}.",
    "Written on one card: {mine}, {v}; on the other: {mine2}, {v2}.",
)

CHANGES = (
    "Actually, {mine} is now {v}.",
    "I changed my mind: {mine} is {v}.",
    "Correction: {mine} is {v}.",
    "Update: {mine} is {v} now.",
    "Things have changed. {Mine} is {v} these days.",
    "Sorry, I was wrong earlier. {Mine} is {v}.",
    "Forget what I said before, {mine} is {v}.",
    "{Mine} has changed to {v}.",
    "I need to correct myself: {mine} is {v}.",
    "Since last week, {mine} is {v}.",
    "From now on, {mine} is {v}.",
    "There was a change, so {mine} is {v} now.",
    "{Mine} is not what it was. It's {v} now.",
    "Scratch that. {Mine} is {v}.",
    "You can forget the old one: {mine} is {v} now.",
    "What I told you about {mine} is out of date. It is {v}.",
    "Please change {mine} to {v}.",
    "News: {mine} is no longer the same. Now it is {v}.",
)
HELD_OUT_CHANGES = (
    "Cross out what you have for {mine} and put {v} there instead.",
    "Nothing stays the same for ever, and {v} has taken the place of the old answer on {mine}.",
    "The earlier answer on {mine} no longer holds, {v} does.",
    "We replaced it: where {mine} is concerned, think of {v}.",
    "Yesterday's version of {mine} is history. Long live {v}!",
    "Would you swap your entry about {mine} for {v}?",
    "As of this morning it reads {v} wherever {mine} is mentioned.",
    "Life moves on, so make that {v} for {mine}.",
)

QUESTIONS = (
    "What is {mine}?",
    "What's {mine}?",
    "Do you remember {mine}?",
    "Can you tell me {mine}?",
    "Remind me, what is {mine}?",
    "I forgot {mine}. What is it?",
    "Tell me {mine}.",
    "What did I say {mine} was?",
    "Do you know what {mine} is?",
    "Hello again! What is {mine}?",
    "Quick question: what's {mine}?",
    "What was {mine} again?",
    "Any idea what {mine} is?",
    "Please tell me what {mine} is.",
    "I can't remember {mine}. Can you?",
    "Let's see if you remember {mine}.",
    "And {mine}?",
    "Thanks. By the way, what is {mine}?",
    "So what's {mine}?",
    "What do you know about {mine}?",
    "I would like to know {mine}.",
    "Now, {mine}. What was it?",
    "Someone just asked me about {mine}. What should I tell them?",
    "Before we go on, what is {mine}?",
    "What have I told you about {mine}?",
    "Give me {mine}, please.",
    "I need {mine} for a form. What is it?",
    "Is there anything you remember about {mine}?",
    "You know {mine}, don't you? What is it?",
    "If I asked you for {mine}, what would you answer?",
    "Could you look in your memory for {mine}?",
    "We talked about {mine} at some point. What did I say?",
    "{Mine}, please.",
    "{Mine}?",
    "I keep forgetting {mine}.",
    "I'm not sure any more what {mine} is. Do you know?",
    "Would you mind telling me {mine}?",
    "What would be {mine}, as far as you know?",
    "Let me test you: what is {mine}?",
    "I wonder whether you still know {mine}.",
    "What should I write down for {mine}?",
    "Earlier I mentioned {mine}. What was it?",
    "In one word or two, what is {mine}?",
    "Okay, next: {mine}?",
    "Help me out, what is {mine}?",
    "I have a question about {mine}: what is it?",
)
LOOSE_QUESTIONS = ("Which {a} did I mention?", "What is the {a}?", "What's our {a}?")
"""These leave open whose is meant: only where nothing is told about anybody else."""

HELD_OUT_QUESTIONS = (
    "There is one blank left on this page, the one for {mine}. Fill it in for me.",
    "Suppose a quiz were about {mine}. Which answer would win?",
    "Complete this sentence with what you know: {mine} is ...",
    "It slipped through my fingers completely, {mine} I mean. Over to you.",
    "Say {mine} back to me.",
    "How would you answer a stranger who is curious about {mine}?",
    "My mind goes blank whenever {mine} comes up. Where were we?",
    "Prove that you were listening when {mine} was the subject.",
    "Imagine introducing me to somebody, with a word about {mine}. How does it go?",
    "Which entry do you have under {mine}?",
)

OPENERS = (
    "Hi there.",
    "Hello!",
    "Good morning.",
    "Hey.",
    "Okay.",
    "I just got home from work.",
    "The bus was late again today.",
    "Thanks, that was useful.",
    "I slept badly last night.",
    "It is raining here, so I have time to write.",
    "Let me change the subject.",
    "I am having a cup of tea.",
    "Great, that makes sense.",
    "Sorry for the late answer.",
    "One moment, the phone rang.",
    "This week has been busy.",
)
CLOSERS = (
    "Anyway, how are you?",
    "That's it for today.",
    "I hope that helps.",
    "More on that another time.",
    "Now back to work.",
    "Talk to you soon.",
    "I have to run in a minute.",
    "It's getting late here.",
)
QUESTION_CLOSERS = (
    "I need it for a form.",
    "Take your time.",
    "A short answer is fine.",
    "My colleague is waiting for it.",
    "Thank you in advance.",
    "I hope you still know.",
    "It's for a letter I am writing.",
    "Just checking.",
)

ANSWER_PREFIX = "{Yours} is"
OTHER_PREFIXES = (
    "It's",
    "It is",
    "That would be",
    "{Yours}? It's",
    "I remember: {yours} is",
    "As far as I know, {yours} is",
    "Yes, {yours} is",
    "Sure! {Yours} is",
    "I have noted that {yours} is",
    "The answer is",
)
TOLD_BY_USER_PREFIXES = ("You told me it is", "You said it was", "You mentioned that {yours} is")
"""Only where the user told it."""


@dataclass(frozen=True)
class Filled:
    """A phrasing with its slots filled. `starts` says at which character each slot's text begins."""

    text: str
    starts: Mapping[str, int]


def fill(phrasing: str, slots: Mapping[str, str]) -> Filled:
    """The phrasing with its slots filled; "a {v}" becomes "an orange" where it has to.

    Braces that hold no plain name stay, as JSON has them. Raises KeyError for a slot that is not given.
    """
    text, cursor = "", 0
    starts: dict[str, int] = {}
    for slot in re.finditer(r"\{(\w+)\}", phrasing):
        text += phrasing[cursor : slot.start()]
        value = slots[slot[1]]
        if slot[1] in ("v", "v2") and re.search(r"\b[aA] \Z", text) and value[:1].lower() in "aeiou":
            text = f"{text[:-1]}n "
        starts.setdefault(slot[1], len(text))
        text += value
        cursor = slot.end()
    return Filled(text + phrasing[cursor:], starts)
