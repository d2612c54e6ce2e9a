"""Evaluation of memories: suites of questions, controls, and reports.

Words used throughout this package:

- case: a conversation to absorb and the questions asked about it.
- arm: what a question is asked with: the memory, or one of its controls (see `controls.py`).
- figure: one row of a report, all arms and measures of one setting.
- a reply that is begun: the prompt already has the reply's beginning, and the model only completes it.
- told, asked: a fact is told in the absorbed conversation and asked for in a new prompt.
"""
