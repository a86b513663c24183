from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from uhrseg.engine.runlog import RunLog

COLUMNS = ["epoch", "step", "lr", "loss", "val_miou"]


def record(step: int, epoch: int) -> dict[str, Any]:
    same = dict.fromkeys(("local", "global", "consistency", "samples_per_s", "data_wait"), 1.0)
    return {"step": step, "epoch": epoch, "loss": float(step), "lr": 0.1 * step} | same


def open_log(folder: Path, step: int = 0, epochs: int = 0, writes: bool = True) -> RunLog:
    return RunLog(folder, COLUMNS, step, epochs, 10, writes)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def test_a_row_is_the_mean_of_its_epoch_with_its_last_step_and_rate(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step, epoch in ((1, 0), (2, 0)):
            log.step(record(step, epoch))
        log.epoch({"val_miou": None})
        log.step(record(3, 1))
        log.epoch({"val_miou": 0.5})
    first, second = rows(tmp_path)
    assert (first["loss"], first["step"], float(first["lr"]), first["val_miou"]) == ("1.5", "2", 0.2, "")
    assert (second["loss"], second["epoch"], second["val_miou"]) == ("3.0", "1", "0.5")


def test_a_term_that_an_older_version_did_not_record_is_the_mean_of_those_that_did(tmp_path: Path) -> None:
    with RunLog(tmp_path, [*COLUMNS, "auxiliary"], 0, 0, 10) as log:
        log.step(record(1, 0))
        log.step(record(2, 0) | {"auxiliary": 3.0})
        log.epoch({"val_miou": None})
    assert rows(tmp_path)[0]["auxiliary"] == "3.0"


def test_resuming_drops_what_came_after_the_checkpoint_and_a_cut_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in range(1, 5):
            log.step(record(step, (step - 1) // 2))
            if step % 2 == 0:
                log.epoch({"val_miou": None})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    with open_log(tmp_path, step=3, epochs=1) as log:
        log.step(record(4, 1) | {"loss": 9.0})
        log.epoch({"val_miou": None})
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert [row["loss"] for row in rows(tmp_path)] == ["1.5", "6.0"]  # 3 from before the stop, 9 from after


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with open_log(tmp_path, writes=False) as log:
        log.step(record(1, 0))
        log.epoch({"val_miou": None})
    assert not any(tmp_path.iterdir())


def test_without_a_terminal_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_log(tmp_path) as log:
        log.step(record(1, 0))
        log.say("hello")
    assert capfd.readouterr() == ("", "")
