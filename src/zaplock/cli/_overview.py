"""What `zaplock` alone and `zaplock --help` say: the questions, and the verb for each.

The summaries stand here and not in the verbs' modules, so that this page needs none of them.
"""

from __future__ import annotations

from typing import Final

QUESTIONS: Final = (
    ("Does something hang right now, and behind whom?", "sudo zaplock why PID"),
    ("It hung an hour ago, or it comes and goes. Who was it?", "sudo zaplock record -p PID"),
    ("What would cure it: another kernel, another way of freeing?", "zaplock replay FILE"),
    ("How long does freeing this much stall whom, under each kernel?", "zaplock compare 80G"),
    ("Is this locking protocol safe?", "zaplock check SCENARIO --design DESIGN"),
)

SUMMARIES: Final = {
    "advise": "name the calls and mappings that are worth changing, and the gain",
    "agent": "watch processes for weeks, and record when somebody waits too long",
    "calibrate": "measure this machine and write its cost profile",
    "check": "prove a locking protocol, or show the interleaving that breaks it",
    "compare": "tear a mapping down under every kernel's design: who stalls?",
    "designs": "list the designs, or show what changed in Linux between two of them",
    "diff": "lay two recordings beside each other: better or worse, and how sure",
    "doctor": "what this kernel and user can see, and what mends the rest",
    "fidelity": "lay real kernels beside the designs that stand for them",
    "fleet": "ask the store of many hosts: who makes whom wait, what would cure it",
    "import": "turn a trace of trace-cmd, perf, ftrace or Perfetto into a recording",
    "measure": "run a teardown on this kernel and time who stalls",
    "oracle": "let the real kernel judge the model, operation by operation",
    "record": "record who holds the mmap_lock of a real process and who waits for it",
    "replay": "replay a recording under another kernel, or freeing memory another way",
    "report": "explain a recording: longest holds, worst waits and who is to blame",
    "run": "run a program so that its big frees stall none of its threads",
    "scale": "predict how a workload grows with CPUs under each design",
    "top": "watch live who holds and who waits",
    "why": "is anything waiting for this process's mmap_lock now, and behind whom?",
}


def glossary() -> dict[str, str]:
    """Return what each word means, from the glossary of the docs."""
    from importlib import resources  # which brings tempfile and urllib: a third of the start

    found = {}
    for line in (resources.files("zaplock.cli") / "glossary.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 2 and cells[0] != "word":
            found.update(dict.fromkeys(cells[0].split(", "), cells[1]))
    return found


def questions() -> str:
    """Lay out what people come with, for `zaplock` alone."""
    lines = ["Who holds a process's mmap_lock, who waits behind whom, and what would cure it.", ""]
    for question, command in QUESTIONS:
        lines += [f"  {question}", f"      {command}"]
    lines += ["", "All verbs: zaplock --help. What a word means: zaplock help convoy."]
    lines += ["What this machine can see: zaplock doctor."]
    return "\n".join(lines)


def overview() -> str:
    """Lay out the verbs, for `zaplock --help`."""
    lines = ["usage: zaplock VERB [options]    (zaplock VERB --help tells a verb's options)", ""]
    lines += [f"  {verb:<10} {summary}" for verb, summary in SUMMARIES.items()]
    return "\n".join([*lines, ""])
