"""`zaplock check --explore`: a state, a question, the next state; by hand or over a pipe."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from zaplock.cli._ending import next_step
from zaplock.cli._json_text import print_json
from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.check.explorer import Explorer
    from zaplock.check.tokens import Token
    from zaplock.check.verdicts import Added


def explore(args: Namespace, added: Added) -> int:
    """Read commands until there are none; 1 or 4 if the state that is left is broken, else 0."""
    from zaplock.check.explorer import Explorer
    from zaplock.check.tokens import read_token, replaying
    from zaplock.cli._check_replay import exit_code_of

    if args.replay:
        token = read_token(args.replay, args.design, args.scenario or "", added)
    else:
        token = _from_the_beginning(args, added)
    explorer = Explorer(token.system(), token.schedule)
    print(
        f"{token.scenario.name} under {token.design.name}: {token.scenario.summary}\n"
        "a letter or a name lets that task take its next step; help lists all commands",
        file=sys.stderr if args.json else sys.stdout,
    )
    session = _Session(explorer, token, args.json)
    try:
        session.run()
    finally:
        explorer.close()
    command = "zaplock check --all"
    if explorer.schedule:
        again = replaying(session.token(), token.reference, token.scenario.name, added)
        command = again.replace(" --replay", " --explore --replay", 1)
    next_step(command, aside=args.json)
    return exit_code_of(explorer.view().invariant)


def _from_the_beginning(args: Namespace, added: Added) -> Token:
    from zaplock.check.tokens import Token
    from zaplock.check.verdicts import find_design, find_scenario

    if not args.scenario:
        raise UserError("--explore needs a SCENARIO, or --replay TOKEN")
    name = args.design[0] if args.design else "linux-6.18"
    scenario = find_scenario(args.scenario, added, args.memory)
    fair = args.queue == "fair" or scenario.fair
    return Token(scenario, find_design(name), name, fair, (), (), 0)


class _Session:
    """The commands, and what they print."""

    def __init__(self, explorer: Explorer, token: Token, as_json: bool) -> None:
        self.explorer = explorer
        self.start = token
        self.json = as_json

    def run(self) -> None:
        """Show the state and do what the next line says, until `quit` or the end of the input."""
        self.show()
        while True:
            line = self.ask()
            if line is None or line in ("q", "quit", "exit"):
                return
            try:
                self.do(line)
            except UserError as error:
                print(error, file=sys.stderr if self.json else sys.stdout)

    def ask(self) -> str | None:
        """Return the next line without its end, None where there is none."""
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline(1000)
        if not line:
            if sys.stdin.isatty():
                print()
            return None
        if not sys.stdin.isatty() and not self.json:
            print(f"> {line.strip()}")
        return line.strip()

    def do(self, line: str) -> None:
        """Do one command; raises UserError for what is none."""
        from zaplock.views import explorer as views

        word, _, rest = line.partition(" ")
        if word in ("", "?", "h", "help"):
            print(views.HELP, file=sys.stderr if self.json else sys.stdout)
        elif word == "state":
            self.tell("state", self.explorer.state())
        elif word == "steps":
            self.tell("steps", views.steps(self.explorer.view()).splitlines())
        elif word == "token":
            self.tell("token", [self.token()])
        else:
            self.move(word, rest)
            self.show()

    def move(self, word: str, rest: str) -> None:
        """Go back, begin anew or let a task move."""
        if word == "restart":
            self.explorer.back(len(self.explorer.schedule))
        elif word == "back":
            self.explorer.back(_count(rest))
        elif word.endswith("!"):
            index = self.task(word.removesuffix("!"))
            if not self.explorer.go_on(index):
                raise UserError(self.stuck(index))
        else:
            # A task's name may have spaces; a number behind it counts steps.
            name, _, count = f"{word} {rest}".strip().rpartition(" ")
            is_count = bool(name) and count.isdecimal()
            index = self.task(name if is_count else f"{word} {rest}".strip())
            for taken in range(_count(count) if is_count else 1):
                if not self.explorer.take(index):
                    if not taken:
                        raise UserError(self.stuck(index))
                    return

    def task(self, word: str) -> int:
        """Return the task of a letter, a name or a number from 1."""
        tasks = self.explorer.tasks
        for index, name in enumerate(tasks):
            if word in (name, "abcdefgh"[index], str(index + 1)):
                return index
        known = ", ".join(f"{'abcdefgh'[index]} ({name})" for index, name in enumerate(tasks))
        raise UserError(f"no command or task {word!a}; the tasks are {known}; see help")

    def stuck(self, index: int) -> str:
        """Say why a task can't move."""
        choice = self.explorer.view().choices[index]
        if self.explorer.run.violation is not None:
            return "a rule is broken and nobody moves any more: go back"
        if not choice.step:
            return f"{choice.task} has ended"
        return f"{choice.task} waits in {choice.step}: let another task move, or go back"

    def token(self) -> str:
        """Name the state in view."""
        from zaplock.check.tokens import token_of

        return token_of(self.start, tuple(self.explorer.schedule))

    def show(self) -> None:
        """Print the state in view."""
        from zaplock.views import explorer as views

        view = self.explorer.view()
        if self.json:
            print_json(views.as_json(view), lines=True)
        else:
            print(views.screen(view), flush=True)

    def tell(self, what: str, lines: list[str]) -> None:
        """Print what was asked for."""
        if self.json:
            print_json({what: lines}, lines=True)
        else:
            print("\n".join(lines), flush=True)


def _count(text: str) -> int:
    if text and not (text.isdecimal() and 0 < int(text[:9]) <= 100_000):
        raise UserError(f"{text!a} is no number of steps from 1 to 100000")
    return int(text or 1)
