"""Shipped cost profiles say what their sources say; a broken one is refused in one line."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from zaplock.errors import UserError
from zaplock.lab import profiles
from zaplock.lab.profiles import UNITS, dump, load, predict, save

GIB = 1 << 30


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "zaplock" / "profiles"


@pytest.mark.parametrize("name", profiles.shipped())
def test_a_shipped_profile_has_every_unit_and_says_where_it_comes_from(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert set(profile.costs) == set(UNITS)
    assert profile.source
    assert profile.description


def test_the_default_and_the_two_sets_of_the_rfc_are_shipped() -> None:
    assert {profiles.DEFAULT, "e5-2680-rfc", "e5-2680-320g"} <= set(profiles.shipped())


@pytest.mark.parametrize(
    ("name", "gib", "published_ns"),
    [("e5-2680-rfc", 80, 2_485_684_000), ("e5-2680-320g", 320, 17_915_000_000)],
)
def test_the_pages_of_a_published_munmap_add_up_to_its_time(
    name: str, gib: int, published_ns: int
) -> None:
    profile = load(name)
    nr_pages = gib * GIB // 4096
    page_ns = profile["zap_anon"] + profile["free_anon"]
    assert nr_pages * page_ns + nr_pages / 512 * profile["free_table"] == pytest.approx(
        published_ns
    )
    assert predict(profile, gib * GIB) == pytest.approx(published_ns, rel=1e-4)


def test_what_the_rfc_does_before_unmap_region_takes_8_us() -> None:
    profile = load("e5-2680-rfc")
    before = ("lock", "vma_find", "vma_detach", "downgrade")
    assert sum(profile[unit] for unit in before) == pytest.approx(8000)


def test_a_profile_is_written_and_read_back_whole(own_directory: Path) -> None:
    profile = replace(
        load("e5-2680-rfc"),
        name="mine",
        description='a "quoted" name, a \\ and a line\nbreak, ü',
        spread={"flush": (1.5, 2.25)},
    )
    save(profile, own_directory / "mine.toml")
    assert load("mine") == profile
    assert [path.name for path in own_directory.iterdir()] == ["mine.toml"]


def test_the_users_own_profile_hides_a_shipped_one(own_directory: Path) -> None:
    own = replace(load("e5-2680-rfc"), description="my own")
    save(own, own_directory / "e5-2680-rfc.toml")
    assert load("e5-2680-rfc").description == "my own"


BROKEN = {
    "an unknown unit": ("[costs]", "[costs]\nzap_everything = 1.0", "costs.zap_everything"),
    "an unknown key": ("[costs]", "colour = 'red'\n[costs]", "colour"),
    "a negative cost": ("flush = ", "flush = -", "costs.flush"),
    "an infinite cost": ("flush = ", "flush = inf #", "costs.flush"),
    "no number": ("flush = ", "flush = nan #", "costs.flush"),
    "a text": ("flush = ", "flush = 'fast' #", "flush"),
    "a missing unit": ("flush = ", "#", "costs.flush is missing"),
    "no TOML": ("[costs]", "[costs", ""),
    "a note on nothing": ("[notes]", "[notes]\nnothing = 'x'", "notes.nothing"),
}


@pytest.mark.parametrize(("old", "new", "named"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_profile_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    text = dump(load("e5-2680-rfc"))
    assert old in text
    path = tmp_path / "broken.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_profile_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"no profile 'pdp-11'; there are e5-2680-320g"):
        load("pdp-11")
    with pytest.raises(UserError, match=r"/nowhere/p.toml' can't be read \(No such file"):
        load("/nowhere/p.toml")
    with pytest.raises(UserError, match=r"is no plain file"):
        load("/tmp/")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"noise\.toml"):
        load(path)


def test_an_unwritable_place_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be written"):
        save(load("e5-2680-rfc"), Path("/proc/nowhere/p.toml"))
    with pytest.raises(UserError, match="is a directory"):
        save(load("e5-2680-rfc"), tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_a_prediction_grows_with_pages_tables_and_vmas() -> None:
    profile = load("epyc-6.18")
    one, two = (predict(profile, size * GIB) for size in (1, 2))
    assert predict(profile, 3 * GIB) - two == pytest.approx(two - one, rel=1e-6)
    per_vma = profile["vma_detach"] + profile["vma_free"]
    assert predict(profile, GIB, nr_vmas=101) - one == pytest.approx(100 * per_vma, abs=2)
    assert predict(profile, GIB, "zero") < predict(profile, GIB, "file")
