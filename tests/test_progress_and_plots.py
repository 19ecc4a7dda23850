"""Progress lines, pictures, and what objects say of themselves."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
import torch
from torch import nn

import regraft
from regraft.progress import Progress, _time


@pytest.fixture(scope="module")
def compiled() -> regraft.Module:
    return regraft.compile(nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval(), (torch.randn(2, 64),))


def other_weights() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Linear(64, 64)).state_dict()


def test_nothing_is_shown_where_nobody_looks(
    compiled: regraft.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    regraft.refit_module_weights(compiled, other_weights())
    assert capfd.readouterr() == ("", "")
    assert Progress("refit").observer is None


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_a_line_that_goes_away(monkeypatch: pytest.MonkeyPatch, with_tqdm: bool) -> None:
    monkeypatch.setenv("REGRAFT_PROGRESS", "1")
    monkeypatch.setattr("regraft.progress._PATIENCE", 0.0)
    monkeypatch.setattr("regraft.progress._PAUSE", 0.0)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    if not with_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with Progress("refit") as progress:
        observer = progress.observer
        assert observer is not None
        observer("stage", 1_000_000, 4_000_000)
    text = shown.getvalue()
    assert "refit: stage" in text
    assert text.rsplit("\r", 2)[-1].strip() == "", "nothing is left"
    assert with_tqdm or "[#######......................." in text


def test_a_long_step_is_shown_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_PROGRESS", "1")
    monkeypatch.setattr("regraft.progress._PATIENCE", 0.05)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with Progress("compile") as progress:
        progress.step("engine 1 of 1")
        deadline = time.monotonic() + 20
        while not shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "compile: engine 1 of 1" in shown.getvalue()
    assert shown.getvalue().rsplit("\r", 2)[-1] == ""


def test_tuning_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_PROGRESS", "1")
    monkeypatch.setattr("regraft.progress._PATIENCE", 0.0)
    monkeypatch.setattr("regraft.progress._PAUSE", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 96)).eval()
    regraft.compile(net, (torch.randn(2, 64),), tune="fast")
    text = shown.getvalue()
    assert re.search(r"engine 1 of 1, tuning problem 1 of 2, about \d+ s left", text), text
    assert "tuning problem 2 of 2" in text
    assert _time(89) == "89 s"
    assert _time(600) == "10 min"


def test_refits_of_small_modules_are_not_observed(
    compiled: regraft.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_PROGRESS", "1")
    observers = []
    refit = regraft.Module.refit

    def observed(module: regraft.Module, *args: object, **options: object) -> regraft.RefitReport:
        observers.append(options.get("observer"))
        return refit(module, *args, **options)

    monkeypatch.setattr(regraft.Module, "refit", observed)
    regraft.refit_module_weights(compiled, other_weights())
    monkeypatch.setattr("regraft.refitting._QUICK_BYTES", 0)
    regraft.refit_module_weights(compiled, other_weights())
    assert observers[0] is None and observers[1] is not None


def test_failures_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_PROGRESS", "1")
    monkeypatch.setattr("regraft.progress._PATIENCE", 0.0)
    monkeypatch.setattr("regraft.progress._PAUSE", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)

    def fail() -> None:
        with Progress("refit") as progress:
            progress.step("verify")
            raise regraft.WeightsError("no")

    with pytest.raises(regraft.WeightsError):
        fail()
    assert "refit: verify" in shown.getvalue()
    assert shown.getvalue().rsplit("\r", 2)[-1] == ""


def test_no_line_where_it_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Terminal())
    assert Progress("refit").observer is not None
    monkeypatch.setenv("REGRAFT_PROGRESS", "0")
    assert Progress("refit").observer is None


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quick_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_PROGRESS", "1")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with Progress("compile") as progress:
        progress.step("export")
    assert shown.getvalue() == ""


def test_pictures_say_what_they_show(compiled: regraft.Module) -> None:
    fork = compiled.fork()
    report = fork.refit({"0.bias": torch.ones(64)}, partial=True)
    assert list(report.phases) == ["match", "check", "compare", "stage", "publish", "retire"]
    phases = report.plot()
    assert "stage" in [label.get_text() for label in phases.axes[0].get_yticklabels()]
    memory = fork.plot_memory()
    (legend,) = memory.legends
    assert [text.get_text() for text in legend.get_texts()] == ["its own", "shared with forks"]
    for figure in (phases, memory):
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        assert picture.getvalue().startswith(b"\x89PNG")


def test_pictures_without_matplotlib(compiled: regraft.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'regraft\[plot\]'"):
        compiled.plot_memory()


def test_objects_say_what_they_are(compiled: regraft.Module) -> None:
    assert repr(compiled).startswith("regraft.Module(refittable, 2 sources, 2 slots, 16.6 kB, cpu ")
    assert repr(compiled.models[0]).startswith("regraft.Model(refittable, 2 sources")
    report = compiled.refit(other_weights())
    assert repr(report).startswith("regraft.RefitReport(2 of 2 sources changed, 2 slots rebuilt, ")


def test_memory_is_shared_until_it_differs() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    original = regraft.compile(net, (torch.randn(2, 64),))
    slots = original.memory()["slots"]
    assert original.memory() == {"slots": slots, "private": slots, "in_use": slots, "free": 0, "kept": 0}
    fork = original.fork()
    assert fork.memory()["private"] == 0 and original.memory()["private"] == 0
    fork.refit({"2.weight": torch.randn(32, 64)}, partial=True)
    assert fork.memory()["private"] == 4 * 64 * 32
    assert original.memory()["private"] == 4 * 64 * 32
    assert fork.memory()["in_use"] == slots + 4 * 64 * 32
    fork.refit({"2.weight": net[2].weight.detach()}, partial=True)
    del original
    assert fork.memory()["private"] == slots
