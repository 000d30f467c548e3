"""The command line: one module per verb, and a line for it in `_overview`.

A module `zaplock/cli/NAME.py` is the verb `zaplock NAME`. It offers

    def configure(parser: argparse.ArgumentParser)    adds its arguments
    def run(args: argparse.Namespace) -> int          does the work, returns the exit code

`args.own_process` says that the process is this command's own, and no caller of `main`.
Modules whose name starts with an underscore are helpers, not verbs. A `UserError` ends any verb
with one line on stderr and exit code 2; Ctrl-C, TERM and HUP end it with 128 and their number (130,
143, 129) after its clean-up has run.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any, Final, NoReturn

from zaplock.cli._json_text import print_json
from zaplock.cli._overview import SUMMARIES, glossary, overview, questions
from zaplock.cli._shortage import require_room, shortage
from zaplock.cli._signals import in_good_order, number_of
from zaplock.cli._streams import guarded, while_read
from zaplock.errors import ProtocolError, UserError, no_such, or_meant
from zaplock.untrusted_names import readable
from zaplock.version import __version__


class _Help(argparse.RawDescriptionHelpFormatter):
    """Fold what is said of an argument as everything else is: between words, never in one."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        from zaplock.views.fold_lines import fold

        return fold(" ".join(text.split()), width, hanging=0)


def _whole_number(text: str) -> int:
    """Read what `type=int` is in any verb; Python's own takes 1_000 and digits of any script."""
    if re.fullmatch(r"[+-]?[0-9]+", text) is None:
        raise argparse.ArgumentTypeError(f"{text!a} is not a whole number")
    if len(text) > _DIGITS or not -(1 << 63) <= int(text) < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text[:_DIGITS]!a} is more than 64 bits hold")
    return int(text)


def _number(text: str) -> float:
    """Read what `type=float` is in any verb: a finite number."""
    if re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.I) is None:
        raise argparse.ArgumentTypeError(f"{text!a} is not a number such as 1.5")
    if not math.isfinite(number := float(text)):
        raise argparse.ArgumentTypeError(f"{text[:_DIGITS]!a} is too large")
    return number


_DIGITS = 40
"""No number of 64 bits has so many."""


class _Parser(argparse.ArgumentParser):
    """Say what is wrong in one line, as every other error of zaplock is said."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})
        # "-1s" is a value that its option refuses: no verb has an option that begins with a digit.
        self._negative_number_matcher = re.compile(r"-\.?[0-9]")
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {readable(message)} (see {self.prog} --help)\n")

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse them, and ask after a misspelt option what was meant."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown and unknown[0].startswith("-"):
            meant = or_meant(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"no option {unknown[0]!a}{meant}")
        if unknown:
            self.error(f"{unknown[0]!a} is one argument too many")
        return parsed


def _load(verb: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{verb}")


def parser_of(verb: str) -> _Parser:
    """Return the parser of a verb."""
    module = _load(verb)
    parser = _Parser(prog=f"zaplock {verb}", description=module.__doc__)
    module.configure(parser)
    if verb in WITH_SCHEMA:
        said = "print the schema of what --json prints, with its version"
        parser.add_argument("--json-schema", action=_ShowSchema, verb=verb, nargs=0, help=said)
    return parser


WITH_SCHEMA: Final = (
    "advise", "calibrate", "check", "compare", "designs", "diff", "doctor", "fidelity", "fleet",
    "import", "measure", "oracle", "record", "replay", "report", "scale", "why",
)  # fmt: skip
"""The verbs that print JSON: `_json_schemas.DOCUMENTS` has what."""


class _ShowSchema(argparse.Action):
    """Print a schema and leave, as `--help` does."""

    def __init__(self, *, verb: str, **options: Any) -> None:
        super().__init__(default=argparse.SUPPRESS, **options)
        self._verb = verb

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from zaplock.cli._json_schemas import schema

        print_json(schema(self._verb))
        parser.exit()


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser of all verbs, for those who complete words or write pages."""
    parser = argparse.ArgumentParser(prog="zaplock")
    verbs = parser.add_subparsers(metavar="VERB")
    for verb, summary in SUMMARIES.items():
        _load(verb).configure(verbs.add_parser(verb, help=summary))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 done, 2 bad input, 128 and a signal's number."""
    own_process = argv is None
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments and arguments[0] in SUMMARIES else ""
    name = f"zaplock {verb}".rstrip()
    with guarded(folded="--json" not in arguments), warnings.catch_warnings():
        warnings.showwarning = partial(_warn, name)
        try:
            with in_good_order():
                code = 0
                with while_read():
                    if verb:
                        require_room()
                        code = _run(verb, arguments[1:], own_process=own_process)
                    else:
                        code = _about(arguments)
                return code
        except UserError as error:
            print(f"{name}: {readable(str(error))}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt as signalled:
            exec("")  # or an exec that was broken off ends Python by SIGINT (run_eval_code_obj)
            print(f"{name}: interrupted", file=sys.stderr)
            return 128 + number_of(signalled)
        except (OSError, MemoryError, RuntimeError, ImportError) as error:
            lack = shortage(error, verb)
            if lack is None:
                return _own_code(name, error)
            print(f"{name}: {lack}", file=sys.stderr)
        except Exception as error:
            return _own_code(name, error)
        finally:
            if own_process:  # its last collection would go through all that was imported
                gc.freeze()
        return 2


def _about(arguments: list[str]) -> int:
    """Answer what is no verb: the questions, the overview, the version, a word."""
    if not arguments:
        print(questions())
    elif arguments[0] == "help" and len(arguments) > 1:
        topic = " ".join(arguments[1:])
        if topic not in SUMMARIES:
            return _explain(topic)
        parser_of(topic).parse_all(["--help"])
    elif arguments[0] in ("-h", "--help", "help"):
        print(overview())
    elif arguments[0] in ("-V", "--version"):
        print(f"zaplock {__version__}")
    else:
        raise UserError(no_such("verb", arguments[0], SUMMARIES))
    return 0


def _explain(topic: str) -> int:
    """Say what a word means."""
    words = glossary()
    if topic not in words:
        verb = or_meant(topic, SUMMARIES)
        raise UserError(
            no_such("verb", topic, SUMMARIES) if verb else no_such("word", topic, words)
        )
    print(f"{topic}: {words[topic]}")
    return 0


def _own_code(name: str, error: Exception) -> int:
    """Say in one line what code of the user's own has done; any other error is a fault here."""
    own_files = sys.modules.get("zaplock.designs.own_files")
    said = own_files.said_of_own_code(error) if own_files is not None else ""
    if not said:
        raise error
    print(f"{name}: {said}; zaplock check shows how it comes to that", file=sys.stderr)
    return ProtocolError.exit_code


def _warn(name: str, message: Warning | str, *_: object) -> None:
    """Print a warning as everything else is said: in one line, without the place in the code."""
    print(f"{name}: {message}", file=sys.stderr)


def _run(verb: str, arguments: list[str], *, own_process: bool) -> int:
    _refuse_empty(verb, arguments)
    module, parser = _load(verb), parser_of(verb)
    parser.set_defaults(own_process=own_process)
    return int(module.run(parser.parse_all(arguments)))


def _refuse_empty(verb: str, arguments: list[str]) -> None:
    """Refuse what a shell makes of a variable that is not set; behind `--` it is a program's own.

    As a path it would be the directory that one is in. Raises UserError.
    """
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for before, argument in zip([verb, *own], own, strict=False):
        option, is_given, value = argument.partition("=")
        if not argument or (option.startswith("--") and is_given and not value):
            after = f"the argument after {option or before!r} is empty"
            raise UserError(f"{after}: is a variable of the shell not set?")
