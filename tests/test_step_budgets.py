"""The budgets of training steps and the script that writes them; tests/extras/test_step_budget.py compiles them."""

import pytest

from benchmarks import step_budgets as budgets
from tests.test_preflight import part, result
from tubevit.config import experiments_folder, load_config
from tubevit.preflight.devices import compiler_version
from tubevit.preflight.topology import find_topology

# Of the same program as another experiment or one of its models, on embedded data or files, or without training.
ALIKE = {"k400", "k700", "moving_digits", "digits_bootstrap", "finetune", "claims", "sparse_from_dense",
         "table6", "table9", "eval_published"}  # fmt: skip


def test_every_row_has_a_budget():
    keys = [budgets.key_of(*row) for row in budgets.ROWS]
    pinned = budgets.pinned_compilers()
    assert len(pinned) == 2 and list(budgets.read()) == [(*key, name) for name in pinned for key in keys]
    assert len(budgets.CSV.read_text().splitlines()) == 1 + len(budgets.read())  # none twice
    for experiment, changes, topology in budgets.ROWS:
        load_config(experiment, {key: str(value) for key, value in changes.items()})
        find_topology(topology)
    experiments = {key[0].partition(":")[0] for key in keys}
    assert experiments | ALIKE == {path.stem for path in experiments_folder().glob("*.py")} and not experiments & ALIKE


def compiler(peak):
    def compiled(config, overrides, topology, parts, effort):
        assert effort == "low" and parts == ["train"]
        return result(train=part(peak)) | {"memory_of_compiler": 1}

    return compiled


def test_a_budget_is_exceeded_by_5_percent():
    found = budgets.measure("quickstart", {}, "v5e:1x1", compiler(2**32))
    expected = {"hbm_mb": 819, "sent_mb": 3 * 2**29 / 1e6, "peak_mib": 4096, "kernel_kcycles": 1500}
    assert {name: found[name] for name in budgets.FIGURES} == pytest.approx(expected, rel=1e-5)
    assert not budgets.exceeded(found, found)
    assert not budgets.exceeded(found | {"peak_mib": 4096 * 1.049}, found)
    assert budgets.exceeded(found | {"peak_mib": 4096 * 1.051, "sent_mb": 0}, found).keys() == {"peak_mib"}
    assert budgets.exceeded(found, found | {"hbm_mb": 0}).keys() == {"hbm_mb"}


def test_updating_is_deliberate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(budgets, "CSV", tmp_path / "step_budgets.csv")
    assert budgets.main(["--only", "quickstart"], compiler(2**32)) == 1 and not budgets.read()
    assert budgets.main(["--only", "quickstart", "--update"], compiler(2**32)) == 0
    (row,) = budgets.read().values()
    assert row["experiment"] == "quickstart" and row["peak_mib"] == "4096.0"
    assert budgets.main(["--only", "quickstart"], compiler(2**32)) == 0
    assert budgets.main(["--only", "quickstart"], compiler(2**33)) == 1
    assert "peak_mib" in capsys.readouterr().out.splitlines()[-1]
    (key,) = [key for key in map(lambda row: budgets.key_of(*row), budgets.ROWS) if key[0] == "quickstart"]
    assert budgets.read() == {(*key, compiler_version(find_topology("v5e:1x1"))): row}


@pytest.mark.parametrize("needed, text", [(20 * 2**30, "20,480 MiB"), (None, "more memory than the chip has")])
def test_a_step_that_does_not_fit_is_reported(tmp_path, monkeypatch, capsys, needed, text):
    def compiled(*arguments):
        return result(train={"fits": False, "needed": needed, "message": "HBM is full"}) | {"memory_of_compiler": 1}

    monkeypatch.setattr(budgets, "CSV", tmp_path / "step_budgets.csv")
    for flags in ([], ["--update"]):
        assert budgets.main(["--only", "quickstart", *flags], compiled) == 1
        assert "quickstart" in (line := capsys.readouterr().out) and f"it needs {text} (HBM is full)" in line
    assert not budgets.CSV.exists()
