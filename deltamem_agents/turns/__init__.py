"""A turn around the model call: planning and reconciling histories, commits, queues, work off the event loop."""
