"""How the assistant takes note of what it was told. Written for this project.

Slots as in the phrasings: {yours} and {v}.
"""

from __future__ import annotations

ACKNOWLEDGEMENTS = (
    "Got it.",
    "Thanks for telling me.",
    "Noted, thank you.",
    "Okay, I will keep that in mind.",
    "Good to know.",
    "Thank you for sharing that.",
    "I understand.",
    "Sure, I'll remember that.",
    "Alright!",
    "That's nice to hear.",
    "Great, thanks.",
    "Understood. How can I help you today?",
    "Thanks! Is there anything you would like to know?",
    "I see. What can I do for you?",
)
CHATTY = (
    "Thank you for sharing that with me. If you have any questions or need help with something, feel free to ask.",
    "That's great! I'm here to help you with whatever you need today.",
    "It's nice to learn a little more about you. What would you like to talk about next?",
    "I'm glad you told me. Would you like some ideas or suggestions related to that?",
    "Thank you for the information. I will do my best to keep it in mind during our conversation.",
    "That sounds interesting! How long has it been that way?",
    "What a lovely detail. Is there a story behind it?",
    "I appreciate you letting me know. Please tell me how I can assist you further.",
    "That's good to know. It can be helpful to have such things written down in one place.",
    "I understand, and thank you for the context. Let me know if you would like help with planning or writing.",
    "It's always nice to hear about these things. Is there anything specific you want to discuss about it?",
    "As an AI assistant, I don't have experiences of my own, but I enjoy hearing about yours.",
    "Wonderful! I'm happy to help if you ever need more information on this topic.",
    "Thanks for the update. I will take that into account when I answer your questions.",
    "That's a nice choice. Many people would probably agree with you.",
    "Thank you. It's important to keep track of details like this one, especially when life gets busy.",
    "I'm here to support you. Please let me know what you would like to do with this information.",
    "Great, I have made a note of it. Would you like to add anything else?",
    "That makes sense. If things change, just tell me and we can go on from there.",
    "How interesting! I'd love to hear more about it when you have the time.",
    "Sure, I can remember that for our chat. What else is on your mind?",
    "Okay! Knowing this will help me give you better answers. Do you have a question for me?",
    "I see, thank you for explaining. There is a lot one could say about that.",
    "It sounds like this matters to you. I'm glad you brought it up.",
    "Thank you for being so open. I'm ready whenever you want to continue.",
    "That's useful to know. Let's move on to whatever you would like to do next.",
)
CHATTY_ECHOES = (
    "So {yours} is {v}. That's great to know! Is there anything I can help you with?",
    "Thank you for telling me that {yours} is {v}. I will keep it in mind for later.",
    "It's nice to hear that {yours} is {v}. Many people would find that interesting.",
    "I'm glad to learn about {v}. If you have any questions, feel free to ask.",
    "Great, I have noted {v} for you. What would you like to do next?",
    "I see, {yours} is {v}. How do you feel about that?",
)
ECHOES = ("Got it, {v}.", "{v}, noted.", "Okay: {yours} is {v}.", "Thanks, I noted {v}.", "I see, {v}. How nice!")

AFTER_TOOLS = (
    "I have looked it up. Is there anything else?",
    "Done, I found the entry.",
    "The lookup worked. What would you like to do with it?",
    "Okay, I have that on record now.",
    "Thank you for waiting. I found what you were looking for.",
    "The information is available. Let me know how I can use it for you.",
)
AFTER_TOOLS_ECHOES = (
    "I looked it up: {yours} is {v}.",
    "According to the record, {yours} is {v}.",
    "It says {v} there.",
    "Here is what I found: {v}.",
)
