import pytest

from tests.checkpoint.test_run_checkpoints import state
from tubevit.checkpoint.checkpoint import steps
from tubevit.checkpoint.replays import Replays
from tubevit.checkpoint.run_checkpoints import Checkpoints, newest_good
from tubevit.errors import UserError
from tubevit.zoo.names import open_checkpoint


def save(workdir, numbers, clean=(), corrupt=None, keep=2):
    """Save checkpoints; the steps in `clean` were replayed."""
    checkpoints = Checkpoints(workdir, keep, replays=True)
    for step in numbers:
        if step in clean:
            checkpoints.mark_clean(step)
        checkpoints.save(state(step), {"model": {"name": "x"}}, wait=True)
    text = "" if corrupt is None else checkpoints.mark_corrupt(corrupt)
    checkpoints.close()
    return text


def test_the_last_good_checkpoint_is_kept(tmp_path):
    save(tmp_path, (1, 2, 3, 4, 5, 6), clean=(1, 2))
    assert steps(tmp_path / "checkpoints") == [2, 5, 6]
    save(tmp_path, (7, 8))  # resumed
    assert steps(tmp_path / "checkpoints") == [2, 7, 8]
    assert newest_good(tmp_path / "checkpoints") == 8  # nothing is wrong


def test_suspect_checkpoints_are_set_aside_once(tmp_path):
    text = save(tmp_path, (1, 2, 3, 4), clean=(2,), corrupt=6)
    assert "the last good checkpoint is step 2" in text
    folder = tmp_path / "checkpoints"
    assert newest_good(folder) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3.suspect", "4.suspect"]
    assert Replays.read(tmp_path) == Replays(2)
    save(tmp_path, (3, 4))
    assert newest_good(folder) == 4


def test_without_a_good_one_it_does_not_start_over(tmp_path):
    assert save(tmp_path, (1, 2), corrupt=3) == "no checkpoint is known to be good, all are suspect"
    for _ in range(2):
        with pytest.raises(UserError, match=r"step 2 is suspect .*two results of step 3.*remove replay\.json"):
            newest_good(tmp_path / "checkpoints")
    (tmp_path / "replay.json").unlink()
    assert newest_good(tmp_path / "checkpoints") == 2


def test_a_note_that_cannot_be_written(tmp_path):
    """What was found is not lost for it, and later checkpoints must not be used."""
    checkpoints = Checkpoints(tmp_path, 2, replays=True)
    checkpoints.mark_clean(1)
    checkpoints.save(state(1), {"model": {"name": "x"}}, wait=True)
    (tmp_path / "replay.json").unlink()
    (tmp_path / "replay.json").mkdir()
    text = checkpoints.mark_corrupt(3)
    checkpoints.close()
    assert text.startswith("the last good checkpoint is step 1; ") and "same command" not in text
    assert "remove what is suspect before you resume, as this could not be noted: " in text


def test_a_save_that_fails_meanwhile(tmp_path):
    """What is good is told nevertheless."""
    checkpoints = Checkpoints(tmp_path, 2, replays=True)
    checkpoints.mark_clean(1)
    checkpoints.save(state(1), {"model": {"name": "x"}}, wait=True)
    checkpoints._error = OSError("no space left")  # of a manifest that is written in the background
    text = checkpoints.mark_corrupt(3)
    checkpoints.close()
    assert text.startswith("the last good checkpoint is step 1, from which")


def test_a_model_is_that_of_the_last_good_checkpoint(tmp_path, said):
    save(tmp_path, (1, 2, 3, 4), clean=(2,), corrupt=6)
    assert open_checkpoint(tmp_path).folder.name == "2" and open_checkpoint(tmp_path, 4).folder.name == "4"
    assert "the two results of step 6 differed; taking step 2" in said[0]
    Replays(0, 6).write(tmp_path)
    with pytest.raises(UserError, match="no checkpoint is known to be good; name one of them, such as .*checkpoints/4"):
        open_checkpoint(tmp_path)


def test_a_corrupt_step_before_the_first_save(tmp_path):
    save(tmp_path, (), corrupt=1)
    assert newest_good(tmp_path / "checkpoints") is None
    save(tmp_path, (1,))
    assert newest_good(tmp_path / "checkpoints") == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}'])
def test_a_file_that_says_nothing(tmp_path, content):
    (tmp_path / "replay.json").write_text(content)
    assert Replays.read(tmp_path) == Replays()
