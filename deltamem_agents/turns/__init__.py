"""A turn around the model call: comparing histories, planning, recalling, committing, queueing, asyncio support."""
