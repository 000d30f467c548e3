"""The pytest marker: a test that holds its mmap_lock too long fails with the offender's name."""

import os

import pytest

pytest_plugins = ["pytester"]

FORK = """
    import mmap, os, pytest

    @pytest.mark.mmap_lock(max_exclusive_hold="{limit}")
    def test_fork():
        area = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area[::4096] = b"x" * (len(area) // 4096)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
"""


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("recording needs root")


@pytest.mark.root
def test_a_hold_over_the_limit_fails_with_its_report(pytester: pytest.Pytester) -> None:
    needs_root()
    pytester.makepyfile(FORK.format(limit="1us"))
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            "*this test breaks its limits of mmap_lock:*",
            "*max_exclusive_hold 1 us: * held it exclusively for * in clone*",
        ]
    )


@pytest.mark.root
def test_a_hold_within_the_limit_passes(pytester: pytest.Pytester) -> None:
    needs_root()
    pytester.makepyfile(FORK.format(limit="1m"))
    done = pytester.runpytest_subprocess("--mmap-lock-required", "--strict-markers")
    done.assert_outcomes(passed=1)


@pytest.mark.root
def test_the_tests_own_failure_comes_first(pytester: pytest.Pytester) -> None:
    needs_root()
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.mmap_lock(max_wait="1ns")
        def test_wrong():
            assert 1 == 2, "my own fault"
        """
    )
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*my own fault*"])
    done.stdout.no_fnmatch_line("*breaks its limits*")


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('max_hold="5ms"', "*takes max_exclusive_hold, max_shared_hold, max_wait, not max_hold*"),
        ('"5ms"', "*takes max_exclusive_hold, max_shared_hold, max_wait, by name*"),
        ('max_wait="soon"', "*duration 'soon' is not a number*"),
    ],
)
def test_a_wrong_marker_is_said_in_one_line(
    pytester: pytest.Pytester, marker: str, said: str
) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.mmap_lock({marker})
        def test_anything():
            pass
        """
    )
    done = pytester.runpytest_subprocess()
    done.stdout.fnmatch_lines([said])
    done.stdout.no_fnmatch_line("*During handling*")
    done.stdout.no_fnmatch_line("*pytest_plugin.py*")
    assert done.ret != 0


def test_without_the_right_to_record_the_test_runs_with_a_warning(
    pytester: pytest.Pytester,
) -> None:
    """An unknown process can't be recorded by anybody: that stands for missing rights as well."""
    pytester.makeconftest(
        """
        import zaplock.recorder.in_memory as recorder
        from zaplock.errors import UserError

        def refused(*args, **options):
            raise UserError("tracefs needs root")

        recorder.record_mm = refused
        """
    )
    pytester.makepyfile(FORK.format(limit="1us"))
    done = pytester.runpytest_subprocess("-W", "default")
    done.assert_outcomes(passed=1, warnings=1)
    done.stdout.fnmatch_lines(["*limits of mmap_lock are not checked: tracefs needs root*"])
    required = pytester.runpytest_subprocess("--mmap-lock-required")
    required.assert_outcomes(failed=1)
