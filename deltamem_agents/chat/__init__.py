"""Conversations as text and token ids: alignment, templates, tool calls. Knows nothing of tensors."""
