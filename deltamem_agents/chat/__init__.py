"""Conversations as text and token ids: comparing histories, chat templates, tool calls, grammars. No torch."""
