"""Facts that the assistant tells or a tool returns. Written for this project.

Slots as in the phrasings; {of} is whose it is, "user" or a person's name. Pairs are what the user asks and
what is answered.
"""

from __future__ import annotations

ASSISTANT_TELLINGS = (
    ("Can you look up {mine} for me?", "Sure. According to the file, {yours} is {v}."),
    ("Do you have {mine} on record?", "Yes, I do. As far as I can see, {yours} is {v}."),
    ("What does the system say about {mine}?", "It says that {yours} is {v}."),
    ("Please check {mine}.", "I have checked, and {yours} is {v}. Can I do anything else for you?"),
    ("Is everything set up for me?", "Yes, everything is ready. I have entered {v} as {yours}."),
    ("I'm back. Any news?", "Welcome back! A message came in: {yours} is {v}."),
    ("Could you help me with my paperwork?", "Of course. I filled in {v} for {yours}, as in the last form."),
    ("Let's go through my details.", "All right. I see here that {yours} is {v}."),
    ("Can you take care of {mine}?", "That is done. {Yours} is {v}, as agreed."),
    ("Anything I should know?", "One thing: {yours} is {v}."),
    ("Thanks for the help yesterday.", "You're welcome. By the way, I see that {yours} is {v}."),
    ("Have you finished the list?", "I have. On it I put {v} next to {yours}."),
    ("Which details are still missing?", "None. {Yours} is {v}, and the rest was complete."),
    ("Tell me something that you know.", "Well, I know for example that {yours} is {v}."),
    ("Please pick something suitable for {mine}.", "I have thought about it and chose {v} for {yours}."),
    ("Good evening.", "Good evening! Just to confirm, {yours} is {v}."),
)
HELD_OUT_ASSISTANT_TELLINGS = (
    ("How far are you with the records?", "Nearly through. Where {yours} was empty it now reads {v}."),
    ("Did anyone call?", "They did, to let us know that {v} will be right as regards {yours}."),
    ("Sum up the open points.", "Only one was open, {yours}, and with {v} that one is settled too."),
    ("Who decides about {mine}?", "I did, after weighing the options: {v} it is."),
    ("Read me the last line of the sheet.", "The last line concerns {yours} and reads {v}."),
    ("Are you still working on it?", "Just finished. You will find {v} under {yours}."),
    ("Surprise me.", "Very well: would you have thought of {v} in connection with {yours}? It is correct."),
    ("I lost the overview.", "No harm done, {v} is all you need when {yours} is in question."),
)
ASSISTANT_CHANGES = (
    ("Please look at {mine} again.", "I did. There was a change: {yours} is {v} now."),
    ("Did anything change?", "Yes, {yours} is now {v}."),
    ("Is the list up to date?", "It is now. I corrected {yours} to {v}."),
    ("Any updates?", "One update: from today, {yours} is {v}."),
    ("I think something was wrong about {mine}.", "You are right, and I have corrected it. {Yours} is {v}."),
    ("Can you change {mine}?", "Done. I have changed {yours} to {v}."),
)
HELD_OUT_ASSISTANT_CHANGES = (
    ("Was there a mistake in the records?", "There was, and where {yours} is concerned it has given way to {v}."),
    ("What did the office want?", "To have {v} in place of the old entry on {yours}."),
    ("Go over it once more.", "Once more, then: strike the former answer on {yours} and read {v}."),
)

TOOL_REQUESTS = (
    "Please look up {mine}.",
    "Can you find {mine} in the records?",
    "Check {mine} for me.",
    "Search for {mine}.",
    "Get {mine} from the system, please.",
    "I need you to look up {mine}.",
    "Is {mine} in the database?",
    "Use the tool to find {mine}.",
)
HELD_OUT_TOOL_REQUESTS = (
    "The office keeps a file on {mine}. Open it.",
    "Somewhere in the archive there must be a note on {mine}; go and see.",
    "Have the machine tell us about {mine}.",
)
TOOL_NAMES = ("lookup_record", "get_profile", "search_contacts", "query_database", "read_notes", "find_entry")

TOOL_RESULTS = (
    "{a}: {v}",
    "Found 1 entry. {a} = {v}",
    "The {a} on record is {v}.",
    "owner: {of}\n{a}: {v}\nstatus: ok",
    '{"status": "ok", "message": "{a} is {v}"}',
    '{"owner": "{of}", "note": "The {a} is {v}."}',
    "1 result for {of}: {a} is {v} (verified)",
    "Record of {of}. Field {a}, value {v}, last checked today.",
)
HELD_OUT_TOOL_RESULTS = (
    "| owner | {of} |\n| {a} | {v} |",
    "OK. Query done in 12 ms, the row says {v} in column {a}.",
    "- subject: {of}\n- topic: {a}\n- content: {v}\n",
    "<entry><key> {a} </key><value> {v} </value></entry>",
)
JSON_RESULTS = (
    '{"{a}": "{v}"}',
    '{"owner": "{of}", "{a}": "{v}"}',
    '{"result": {"field": "{a}", "value": "{v}"}}',
    '{"ok": true, "data": [{"owner": "{of}", "key": "{a}", "value": "{v}"}]}',
)
HELD_OUT_JSON_RESULTS = (
    '[["owner", "{of}"], ["{a}", "{v}"]]',
    '{"hits": 1, "rows": [{"value": "{v}", "name": "{a}", "of": "{of}"}]}',
)
"""Values in quotes: other tokens than the same value has in a reply."""
