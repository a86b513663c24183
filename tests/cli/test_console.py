"""Every failure is one message on stderr and an exit code of the contract; stdout stays clean."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from uhrseg.cli.console import Command, print_json, progress_bar
from uhrseg.cli.options import band_numbers, names
from uhrseg.errors import InputError, RunError, UhrsegError


def run(failure: BaseException | None, *arguments: str) -> Result:
    """Run a command with the shell's behaviour that raises `failure`."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command(cls=Command)
    def work(
        debug: Annotated[bool, typer.Option("--debug")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
        verbose: Annotated[bool, typer.Option("--verbose")] = False,
    ) -> None:
        logging.getLogger("uhrseg.somewhere").info("said by the library")
        logging.getLogger("uhrseg.somewhere").debug("whispered by the library")
        if failure is not None:
            raise failure

    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (InputError("parcel.tif has 3 bands"), 2, "Error: parcel.tif has 3 bands\n"),
        (RunError("the disk went away"), 1, "Error: the disk went away\n"),
        (UhrsegError("something"), 1, "Error: something\n"),
        (OSError(28, "No space left on device"), 1, "Error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt("Interrupted. To go on: again"), 130, "Interrupted. To go on: again\n"),
        (KeyboardInterrupt(), 130, "Interrupted: nothing unfinished was left behind.\n"),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(failure: BaseException, code: int, message: str) -> None:
    result = run(failure, "--quiet")
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_a_bug_of_ours_says_so_in_one_line_and_asks_for_debug() -> None:
    result = run(ZeroDivisionError("division\nby zero"), "--quiet")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "bug in uhrseg" in result.stderr and "--debug" in result.stderr


@pytest.mark.parametrize("failure", [InputError("wrong"), ZeroDivisionError("oops"), KeyboardInterrupt("stop")])
def test_a_traceback_appears_with_debug_only(failure: BaseException) -> None:
    plain, debugged = run(failure), run(failure, "--debug")
    assert "Traceback" not in plain.output
    assert "Traceback" in debugged.stderr and "raise failure" in debugged.stderr
    assert debugged.exit_code == plain.exit_code


def test_quiet_and_verbose_choose_what_the_library_says() -> None:
    assert run(None).stderr == "said by the library\n"
    assert run(None, "--quiet").stderr == ""
    assert run(None, "--verbose").stderr == "said by the library\nwhispered by the library\n"


def test_exit_inside_a_command_keeps_its_code() -> None:
    result = run(typer.Exit(7))
    assert result.exit_code == 7 and "Error" not in result.output


def test_no_progress_bar_without_a_terminal() -> None:
    with progress_bar("Working") as progress:
        assert progress is None


def test_a_progress_bar_on_a_terminal_and_none_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar("Working") as progress:
        assert progress is not None
        progress(3, 10)
    with progress_bar("Working", quiet=True) as progress:
        assert progress is None


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"é": 1.5})
    assert json.loads(capsys.readouterr().out) == {"é": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json(float("nan"))


@pytest.mark.parametrize(
    ("given", "bands"), [(None, None), (["3,2,1"], [3, 2, 1]), (["1", "2"], [1, 2]), (["4, 1", "2"], [4, 1, 2])]
)
def test_bands_may_be_listed_or_repeated(given: list[str] | None, bands: list[int] | None) -> None:
    assert band_numbers(given) == bands


@pytest.mark.parametrize("given", ["0", "-1", "red", "1,,2", "1.5", ""])
def test_what_is_no_band_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="no band"):
        band_numbers([given])


def test_names_are_split_at_commas() -> None:
    assert names("mound, trapping pit") == ["mound", "trapping pit"]
    assert names(None) is None
