"""The benchmark of fine-tuning: its lists of clips, its settings, and the page that says what the csv does."""

import collections
import inspect
import pathlib

import pytest

from benchmarks import finetuning_sets as sets
from tests.data.clips import write_clip
from tests.scripts import script
from tubevit.config import flatten, load_config
from tubevit.data.moving_digits import DIRECTIONS
from tubevit.data.sources import open_source
from tubevit.data.sources.embedded import embedded_folder
from tubevit.recipes.finetune import finetune_config

module = script("benchmarks/finetuning.py")
# Names as in the public repository, by patient. The metadata lists those of numbered patients.
PATIENTS = {
    "36": ["Cov-Atlas+(44).gif", "Cov-Atlas-+(43).gif", "Pneu-Atlas-pneumonia.gif"],
    "case": ["Cov_case_vid1.mp4", "Cov_case_vid2.mp4"],
    **{f"sonographic{letter}": [f"Cov_sonographic{letter}_v{k}.mov" for k in range(2)] for letter in "abcdef"},
    **{f"avi{letter}": [f"Pneu_Avi{letter}_Video_00{k}.mp4" for k in range(3)] for letter in "abcde"},
    **{str(100 + i): [f"Reg_pat{i}Image_13{k}.MPEG" for k in range(4)] for i in range(5)},
}
OTHERS = ["linear/label_uncertain/Cov_guess.mp4", "convex/Cov_photo.png", "convex/._Cov_x.mp4"]
OTHERS += [f"linear/Vir_file{k}.mp4" for k in range(7)]  # too few of a label


def embedded_rows(train, val, labels=80):
    """Rows of the embedded csv with `train` and `val` clips for each label."""
    names = [f"{digit}_{way}" for digit in range(10) for way in DIRECTIONS][:labels]
    return [
        {"path": f"{split}/{label}_{i}.mp4", "label": label, "split": split, "instance": str(i)}
        for split, count in (("train", train), ("val", val), ("test", 2)) for label in names for i in range(count)
    ]  # fmt: skip


def counts(rows, split):
    return collections.Counter(row["label"] for row in rows if row["split"] == split)


def test_digits_are_chosen_by_the_seed():
    rows = embedded_rows(75, 11)
    chosen = sets.digits_list(rows, 0)
    assert set(counts(chosen, "train").values()) == {20} and set(counts(chosen, "val").values()) == {11}
    assert counts(chosen, "train").keys() == counts(chosen, "val").keys() and len(counts(chosen, "val")) == 26
    assert {row["split"] for row in chosen} == {"train", "val"}
    assert len({row["path"] for row in chosen}) == len(chosen) == 26 * 31
    assert chosen == sets.digits_list(rows, 0) != sets.digits_list(rows, 1)


def test_scarce_classes_are_filled_up_by_others():
    rows = embedded_rows(30, 2, labels=26)
    scarce = [row for row in rows if row["label"] != "0_right" or row["path"] in ("train/0_right_0.mp4",)]
    found = counts(sets.digits_list(scarce, 0), "train")
    assert found.total() == 520 and found["0_right"] == 1 and max(found.values()) <= 21
    few = sets.digits_list(embedded_rows(3, 1, labels=5), 0)
    assert len(few) == 5 * 4


def test_classes_that_can_be_evaluated_come_first():
    rows = [row for row in embedded_rows(20, 2) if row["split"] == "train" or row["label"].startswith(("1", "2"))]
    found = sets.digits_list(rows, 3)
    assert len(counts(found, "val")) == 16 and len(counts(found, "train")) == 26


def test_folds_keep_groups_and_shares():
    sizes = {"a": 12, "b": 9, "c": 7, "d": 5, "e": 5, "f": 4, "g": 3, "h": 3, "i": 2, "j": 2, "k": 1, "l": 1}
    clips = [(group, "xyz"[(i + ord(group)) % 3]) for group, size in sizes.items() for i in range(size)]
    folds = sets.folds_of(clips)
    assert folds.keys() == sizes.keys() and set(folds.values()) == {0, 1, 2, 3}
    assert folds == sets.folds_of(reversed(clips))
    for label in "xyz":
        inside = collections.Counter(folds[group] for group, found in clips if found == label)
        assert max(inside.values()) - min(inside[fold] for fold in range(4)) <= 2


@pytest.mark.parametrize(
    "names, common",
    [
        (("Pneu_northumbria_0409_set3_vid1", "Reg_northumbria_1009_vid2"), "northumbria"),
        (("Cov_combatting_Image1", "Cov_combatting_image4"), "combatting_image"),
        (("Reg_Avi_lung-sliding", "Reg_Avi_lung-sliding-2"), "avi_lung-sliding"),
        (("Cov_wfumb_case_dez_a", "Cov_wfumb_case_dez"), "wfumb_case_dez"),
        (("Cov-Atlas+(44)", "Cov-Atlas-+(43)", "Reg-Atlas"), "atlas"),
        (("Cov_2020",), "cov_2020"),
    ],
)
def test_names_without_a_patient_stay_together(names, common):
    assert {sets.source_of(name) for name in names} == {common}


@pytest.fixture
def ultrasound(tmp_path):
    """The folder of the repository, with empty files and the metadata of some."""
    names = [f"{('convex', 'linear')[i % 2]}/{name}" for found in PATIENTS.values() for i, name in enumerate(found)]
    for name in [*names, *OTHERS]:
        path = tmp_path / "pocus_videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    lines = ["Filename,Patient ID / Name", "Cov_case_vid1,"]
    listed = {patient: found for patient, found in PATIENTS.items() if patient.isdecimal()}
    lines += [f"{name.partition('.')[0].upper()},{patient}" for patient, found in listed.items() for name in found]
    (tmp_path / "dataset_metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_no_patient_is_in_two_splits(ultrasound):
    patient_of = {name: patient for patient, found in PATIENTS.items() for name in found}
    held_out = []
    for seed in range(5):
        rows = sets.ultrasound_list(ultrasound, seed)
        patients = {"train": set(), "val": set()}
        for row in rows:
            patients[row["split"]].add(patient_of[row["path"].rpartition("/")[2]])
        assert not patients["train"] & patients["val"] and patients["train"] | patients["val"] == PATIENTS.keys()
        assert counts(rows, "train").keys() == counts(rows, "val").keys() == {"cov", "pne", "reg"}
        assert len(rows) == len(patient_of)
        held_out.append({row["path"] for row in rows if row["split"] == "val"})
    assert held_out[0] == held_out[4] and sum(map(len, held_out[:4])) == len(set.union(*held_out)) == len(patient_of)


def test_no_video_is_in_two_splits(tmp_path):
    """Lines as in the public repository: clips below the address of their video, and ranges from other data sets."""
    groups = {"a": ["fi001", "fi002", "nofi001"], "b": ["fi003", "nofi002"]}
    groups["set"] = [f"nofi{i:03}" for i in range(3, 7)]
    groups |= {name: [f"fi{i:03}", f"fi{i + 1:03}"] for i, name in ((4, "c"), (6, "d"), (8, "e"))}
    groups |= {name: [f"nofi{i:03}", f"nofi{i + 1:03}"] for i, name in ((7, "f"), (9, "g"), (11, "unlisted"))}
    for name in (name for found in groups.values() for name in found):
        path = tmp_path / ("noFight" if name.startswith("no") else "fight") / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    lines = ["nofi003 - nofi006 : A data set"]
    for group in groups.keys() - {"set", "unlisted"}:
        lines += [f"https://videos/{group}", *(f" {name}: 0.13.50 - 0.15.60" for name in groups[group]), ""]
    (tmp_path / "videos.txt").write_text("\n".join(lines))
    group_of = {name: group for group, found in groups.items() for name in found}
    group_of |= {"nofi011": "nofi011", "nofi012": "nofi012"}  # without a line: alone
    held_out = []
    for seed in range(4):
        path = pathlib.Path(sets.make_list(f"fights={tmp_path}", seed, tmp_path))
        groups_of = {"train": set(), "val": set()}
        for row in module.read(path):
            groups_of[row["split"]].add(group_of[pathlib.Path(row["path"]).stem])
        assert not groups_of["train"] & groups_of["val"]
        assert groups_of["train"] | groups_of["val"] == set(group_of.values())
        held_out.append(groups_of["val"])
    assert all(held_out) and sum(map(len, held_out)) == len(set.union(*held_out))


def test_lists_are_sources(digits_cache, ultrasound, tmp_path):
    digits = sets.make_list("digits", 0, tmp_path / "digits")
    rows = module.read(embedded_folder() / "digit_motion.csv")
    assert len(open_source(digits, "train")) == sum(row["split"] == "train" for row in rows)
    assert set(open_source(digits, "val").classes) == set(open_source(digits, "train").classes)
    assert len(open_source(digits, "val")) > 0
    clips = sets.make_list(f"ultrasound={ultrasound}", 1, tmp_path / "ultrasound")
    assert open_source(clips, "train").classes == ("cov", "pne", "reg")
    assert sets.make_list("mine=clips.csv", 0, tmp_path / "mine") == "clips.csv" and not (tmp_path / "mine").exists()


OF_STEPS = {"optimizer.warmup_steps", "optimizer.ema_decay", "eval.every", "checkpoint.every", "log.every"}


def test_settings_follow_from_the_recipe(digits_cache, tmp_path):
    """Each changes what it says and nothing else; a key of the model makes the recipe begin from scratch."""
    data = sets.make_list("digits", 0, tmp_path)
    plan = module.Runs(tmp_path, data, 3, {"train.label_smoothing": "0.2"}).plan
    recipe = flatten(plan("recipe")[2].config)
    assert recipe["seed"] == 3 and recipe["train.label_smoothing"] == 0.2 and recipe["init.checkpoint"]
    for setting, (arguments, keys) in module.SETTINGS.items():
        found = flatten(plan(setting)[2].config)
        changed = {key for key in found if found[key] != recipe[key]}
        if not arguments and setting not in ("adamw", "rate"):
            assert changed == set(keys) | (OF_STEPS if "train.steps" in keys else set())
    short, fast, both = (flatten(plan(name)[2].config) for name in ("short", "lr_x3", "scratch+lr_x3"))
    assert short["train.steps"] == recipe["train.steps"] // 2
    assert short["optimizer.ema_decay"] == pytest.approx(1 - 10 / short["train.steps"], rel=1e-3)
    assert fast["optimizer.learning_rate"] == pytest.approx(3 * recipe["optimizer.learning_rate"], rel=0.05)
    assert both["init.checkpoint"] is None and both["optimizer.learning_rate"] == 0.03
    assert flatten(plan("adamw")[2].config)["optimizer.b2"] == 0.999
    load_config(*plan("scratch+mixup+cutmix")[:2])


def test_the_frame_rate_of_the_median_video(tmp_path):
    """In place of the checkpoint's 8 frames per second."""
    for label in "ab":
        write_clip(tmp_path / f"{label}.mp4", [100 * i for i in range(64)], size=(64, 64))
    (tmp_path / "clips.csv").write_text(
        "path,label,split\n" + "".join(f"{label}.mp4,{label},{split}\n" for label in "ab" for split in ("train", "val"))
    )
    plan = module.Runs(tmp_path, str(tmp_path / "clips.csv"), 0, {"data.train.data.allow_overlap": "true"}).plan
    recipe, rate, scratch = (flatten(plan(name)[2].config) for name in ("recipe", "rate", "scratch"))
    seconds = 63 * 0.1 + 1 / 25  # the last frame as long as the rate of the track says
    assert recipe["input.fps"] == 8 and rate["input.fps"] == scratch["input.fps"] == round(16 / seconds, 2)
    assert {key for key in recipe if recipe[key] != rate[key]} == {"input.fps"}


def rows_of(name, values, **changes):
    """Rows of the csv from `{setting: (last, best) of each seed}`."""
    fixed = dict(clips="93", classes="3", held_out="31", pixels="0.5", steps="600", seconds="120") | changes
    return [
        {"set": name, "setting": setting, "seed": str(seed), "last": str(last), "best": str(best), **fixed}
        for setting, seeds in values.items() for seed, (last, best) in enumerate(seeds)
    ]  # fmt: skip


def test_tables_compare_seed_by_seed():
    rows = rows_of("mine", {"scratch": [(0.2, 0.3)], "scratch+mixup": [(0.25, 0.2)], "recipe": [(0.5, 0.6), (0.7, 0.7)],
                            "mixup": [(0.6, 0.6), (0.7, 0.9)]})  # fmt: skip
    rows += rows_of("other", {"recipe": [(0.5, 0.5)]}, pixels="")
    first, _, _, _, recipe, scratch, mixup, combined, _, second, *_ = module.table(rows)
    assert first == (
        "**`mine`**: 93 training clips of 3 classes, 31 held out. A linear model of grey pixels: 50.0 (50.0 to 50.0) %."
    )
    assert recipe == "| the recipe | 60.0 (50.0 to 70.0) |  | 65.0 (60.0 to 70.0) |  | 600 | 2.0 | 2 |"
    assert scratch == "| from scratch | 20.0 | -30.0 | 30.0 | -30.0 | 600 | 2.0 | 1 |"
    assert mixup == (
        "| mixup 0.8 | 65.0 (60.0 to 70.0) | +5.0 (+0.0 to +10.0) | 75.0 (60.0 to 90.0) | +10.0 (+0.0 to +20.0) "
        "| 600 | 2.0 | 2 |"
    )
    assert combined == "| from scratch, mixup 0.8 | 25.0 | +5.0 | 20.0 | -10.0 | 600 | 2.0 | 1 |"
    assert second == "**`other`**: 93 training clips of 3 classes, 31 held out."
    assert module.table([]) == ["Not measured yet."]
    assert module.table(rows_of("mine", {"mixup": [(0.5, 0.5)]}))[-1].startswith("| mixup 0.8 | 50.0 | - | 50.0 | - |")


def test_steps_and_seconds_leave_out_evaluation():
    times = {"time/data": 0.5, "time/step": 1.5, "time/save": 9.0}
    assert module.steps_and_seconds([{"step": 10, **times}, {"step": 10, "eval/data/top1": 1}]) == (10, 20)
    assert module.steps_and_seconds([{"step": 10, **times}, {"step": 15, **times, "time/step": 0.1}]) == (15, 23)


def test_every_setting_has_a_name():
    assert module.LABELS.keys() == module.SETTINGS.keys() | module.VIEWS.keys()
    assert all(module._setting(name) == name for name in (*module.LABELS, "scratch+mixup"))


@pytest.mark.parametrize("flags", [["--settings", "mixu"], ["--sets", "digits=x"], ["--sets", "ultrasound"], ["--x=1"]])
def test_wrong_arguments_are_refused(flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        module.main([*flags, "--out", str(tmp_path / "out.csv")])
    assert "expected" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_page_is_written_from_the_csv_and_the_recipe():
    text = module.PAGE.read_text()
    assert module.page(text, module.read(module.CSV)) == text and module.BEGIN in text
    recipe = [line for line in inspect.getdoc(finetune_config).splitlines() if line.startswith("|")]
    assert len(recipe) > 5 and "\n".join(recipe) in text
