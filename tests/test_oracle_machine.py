"""Hypothesis writes the sequences: the same rules as the generator's, its own shrinker."""

from __future__ import annotations

from drawn import drawn
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from test_oracle import WINDOW, needs_kernel

from zaplock.oracle.campaign import Bench
from zaplock.oracle.modelside import COVERED, model_side
from zaplock.oracle.ops import Argument, Op, Ref
from zaplock.oracle.scope import ADVICE
from zaplock.oracle.windows import UNMAP_ALL

PAGE = 4096
pages = st.integers(1, 12)
pageshifts = st.integers(-2, 14)
prots = st.sampled_from([0, 1, 2, 3, 5, 7])
benches: list[Bench] = []


class AddressSpaces(RuleBasedStateMachine):
    """Collect operations; in the end both sides run them and must agree after each."""

    places = Bundle("places")

    def __init__(self) -> None:
        super().__init__()
        self.sequence: list[Op] = []

    def do(self, name: str, *arguments: Argument) -> int:
        self.sequence.append(Op(name, arguments))
        return len(self.sequence) - 1

    @initialize(target=places)
    def window(self) -> Argument:
        return WINDOW

    def at(self, place: Argument, shift: int) -> Argument:
        if isinstance(place, Ref):
            return Ref(place.op, place.delta + shift * PAGE)
        return place + shift * PAGE

    @rule(
        target=places, length=pages, prot=prots,
        kind=st.sampled_from([0x21, 0x22, 0x122, 0x4022, 0x8022, 0x2022]),
    )  # fmt: skip
    def map_anywhere(self, length: int, prot: int, kind: int) -> Argument:
        return Ref(self.do("mmap", 0, length * PAGE, prot, kind, -1, 0))

    @rule(place=places, shift=pageshifts, length=pages, prot=prots, kind=st.sampled_from([1, 2]))
    def map_anonymous_over(
        self, place: Argument, shift: int, length: int, prot: int, kind: int
    ) -> None:
        self.do("mmap", self.at(place, shift), length * PAGE, prot, 0x30 | kind, -1, 0)

    @rule(
        place=places, shift=pageshifts, length=pages, prot=prots, kind=st.sampled_from([1, 2]),
        slot=st.integers(0, 3), offset=st.integers(0, 6),
    )  # fmt: skip
    def map_a_file_over(
        self, place: Argument, shift: int, length: int, prot: int, kind: int, slot: int, offset: int
    ) -> None:
        where = self.at(place, shift)
        self.do("mmap", where, length * PAGE, prot, 0x10 | kind, slot, offset * PAGE)

    @rule(place=places, shift=pageshifts, name=st.sampled_from(["load", "store"]))
    def touch(self, place: Argument, shift: int, name: str) -> None:
        self.do(name, self.at(place, shift))

    @rule(
        place=places, shift=pageshifts, length=pages,
        name=st.sampled_from(["munmap", "mlock", "munlock", "mincore"]),
    )  # fmt: skip
    def work_on(self, place: Argument, shift: int, length: int, name: str) -> None:
        self.do(name, self.at(place, shift), length * PAGE)

    @rule(place=places, shift=pageshifts, length=pages, prot=prots)
    def protect(self, place: Argument, shift: int, length: int, prot: int) -> None:
        self.do("mprotect", self.at(place, shift), length * PAGE, prot)

    @rule(
        place=places, shift=pageshifts, length=pages,
        advice=st.sampled_from([advice for advice in ADVICE if advice != 9]),
    )  # fmt: skip
    def advise(self, place: Argument, shift: int, length: int, advice: int) -> None:
        self.do("madvise", self.at(place, shift), length * PAGE, advice)

    @rule(target=places, place=places, shift=pageshifts, old=pages, new=pages)
    def resize(self, place: Argument, shift: int, old: int, new: int) -> Argument:
        where = self.at(place, shift)
        return Ref(self.do("mremap", where, old * PAGE, new * PAGE, 1, 0))

    @rule(place=places, to=places, shift=pageshifts, length=pages, flags=st.sampled_from([3, 5, 7]))
    def move(self, place: Argument, to: Argument, shift: int, length: int, flags: int) -> None:
        size = length * PAGE
        self.do("mremap", place, size, size, flags, self.at(to, shift))

    @rule()
    def fork(self) -> None:
        self.do("fork")

    def teardown(self) -> None:
        if not benches:
            benches.append(Bench(model_side, COVERED))
        found = benches[0].diverge((*self.sequence, *UNMAP_ALL))
        assert found is None, (found.sequence[: found.at + 1], found.differences)


@needs_kernel
class TestAddressSpaces(AddressSpaces.TestCase):  # type: ignore[misc, name-defined]
    settings = drawn(max_examples=60, stateful_step_count=30)

    @classmethod
    def tearDownClass(cls) -> None:
        for bench in benches:
            bench.close()
        benches.clear()
