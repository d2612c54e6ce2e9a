"""`deltamem doctor`: what works on this machine."""

from __future__ import annotations

from dataclasses import asdict

import typer

from deltamem_agents.cli.options import Json
from deltamem_agents.cli.screen import emit, printable, stdout

_MARKS = {"ok": ("✓", "green"), "broken": ("✗", "red"), "absent": ("–", "yellow")}


def doctor(as_json: Json = False) -> None:
    """Check what works on this machine, what does not, and what to do about it.

    ✓ works · ✗ is required and does not work · – is optional and missing. The exit code is 1 if anything is ✗.

    JSON: {"ok", "checks": [{"name", "status": "ok"|"broken"|"absent", "detail", "remedy"}]}.
    """
    from deltamem_agents.cli.checks import examine

    findings, console = [], stdout()
    for finding in examine():
        findings.append(finding)
        if as_json:
            continue
        mark, colour = _MARKS[finding.status]
        console.print(f"{mark} ", style=colour, end="")
        console.print(f"{finding.name:<16} {printable(finding.detail)}", soft_wrap=True)
        if finding.remedy:
            console.print(f"{'':<18} → {finding.remedy}", style="dim", soft_wrap=True)
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if as_json:
        emit({"ok": not broken, "checks": [asdict(finding) for finding in findings]})
    else:
        console.print(f"\nbroken: {', '.join(broken)}" if broken else "\neverything required works")
    if broken:
        raise typer.Exit(1)
